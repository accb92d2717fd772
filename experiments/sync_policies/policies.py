"""The policies that are compared, by name."""

from jaxbn import sync_policies as sp

MEMORY = 0.8
"""The memory of the stale policies whose name gives none."""


def by_name(name: str, workers: int, steps: int) -> sp.Policy:
    """Returns the policy with a given name.

    Args:
      name: one of `NAMES`, or `stale, a = MEMORY`, perhaps with `, forward` after it.
      workers: the number of workers.
      steps: the steps of the whole training; `frozen after half` is exact in the first
        half of them.
    """
    if name.startswith("stale, a = "):
        memory, _, forward = name.removeprefix("stale, a = ").partition(", ")
        return sp.Stale(float(memory), backward=not forward)
    return {
        "exact": sp.Exact(),
        "groups of half": sp.Group(max(workers // 2, 1)),
        "half of the examples": sp.Sampled(0.5),
        "every 8th step": sp.Periodic(8),
        "every 8th step, frozen": sp.Periodic(8, "frozen"),
        "frozen after half": sp.FrozenAfter(steps // 2),
        "local": sp.Local(),
        "stale": sp.Stale(MEMORY),
        "stale, half": sp.Stale(MEMORY, backward=0.5),
        "stale, forward": sp.Stale(MEMORY, backward=False),
    }[name]


NAMES = (
    "exact",
    "groups of half",
    "half of the examples",
    "every 8th step",
    "every 8th step, frozen",
    "frozen after half",
    "local",
    "stale, forward",
    "stale, half",
    "stale",
)

NEED_SEVERAL_EXAMPLES = ("every 8th step", "local")
"""Policies that normalise by one worker's own moments: one value has no variance."""
