"""The tables of the study and its verdict, made from its JSON alone."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments import output, verdicts
from experiments.sync_policies import figure, policies

POINT = 0.01
"""Of accuracy."""
NEAR, NEAR_SORTED = 0.5 * POINT, POINT
"""How far stale statistics may be from exact ones."""
TARGET_EXAMPLES = (2, 4, 8)
"""Per worker, at which they are held to that."""


Measure = Callable[[Mapping[str, Any]], np.ndarray]


def write(path: pathlib.Path) -> str:
    """Writes `.md` and `.png` beside the JSON at `path`; returns the text."""
    return output.write_pages(path, table, {"": figure.draw})


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    made = [verdicts.expected(statements(result)), _in_short(result)]
    return "\n\n".join(
        made + [write_part(result) for name, write_part in _PARTS.items()
                if name in result["parts"]]
    )  # fmt: skip


def statements(result: Mapping[str, Any]) -> dict[str, bool]:
    """What was expected, and whether it was found."""
    few = result["options"]["usual"]
    shuffled, by_label = (
        _lost(result, "examples", few),
        _lost(result, "sorted", few),
    )
    targets = [
        _lost(result, "examples", each)["stale"]
        for each in result["options"]["examples"]
        if each in TARGET_EXAMPLES
    ]
    of_sorted = [_lost(result, "sorted", few * n)["stale"] for n in (1, 2)]
    return {
        f"local statistics lose more than a point at {few} examples per worker": (
            shuffled["local"] > POINT
        ),
        "and more on sorted shards": by_label["local"] > shuffled["local"],
        "stale ones lose at most half a point at 2 to 8 examples": (
            max(targets, default=1.0) <= NEAR
        ),
        "and at most a point on sorted shards": max(of_sorted) <= NEAR_SORTED,
        "without the backward term they learn more slowly": all(
            slower["stale, forward"] > slower["stale"]
            for slower in (
                _lost(result, "examples", few, _mean),
                _lost(result, "sorted", few, _mean),
            )
        ),
    }


def verdict(result: Mapping[str, Any]) -> str:
    """In plain words."""
    return verdicts.of(*statements(result).values())


def _lost(
    result: Mapping[str, Any], part: str, examples: int, measure: Measure | None = None
) -> dict[str, float]:
    """By policy: how much less than exact, at the end or by another measure."""
    settings = result["parts"][part]
    found = next(each for name, each in settings.items() if sizes(name)[1] == examples)
    made = {policy: (measure or _end)(each).mean() for policy, each in found.items()}
    return {policy: float(made["exact"] - value) for policy, value in made.items()}


def _end(records: Mapping[str, Any]) -> np.ndarray:
    """Accuracy of the last record, `[seeds, ...]`."""
    return _accuracies_of(records)[-1]


def _mean(records: Mapping[str, Any]) -> np.ndarray:
    """Mean accuracy of all records, `[seeds, ...]`: the sooner, the higher."""
    return _accuracies_of(records).mean(0)


def _accuracies_of(records: Mapping[str, Any]) -> np.ndarray:
    """`[records, seeds, ...]`; None, of a network that overflowed, is nothing right."""
    return np.nan_to_num(np.array(records["accuracy"], float), nan=0.0)


_TWICE = "every layer, twice"
# What layers wait for, what is remembered, and when a policy serves.
_WORDS = {
    "exact": (_TWICE, "nothing", "where devices are few"),
    "groups of half": (
        f"{_TWICE}, for fewer devices", "nothing", "where groups see all labels",
    ),
    "half of the examples": (_TWICE, "nothing", "not to wait less"),
    "every 8th step": (
        f"{_TWICE}, in every 8th step", "a step number", "not at few examples",
    ),
    "every 8th step, frozen": (
        f"{_TWICE}, in every 8th step", "a step number, 2 floats per channel",
        "not: stale costs less",
    ),
    "frozen after half": (
        f"{_TWICE}, in the first half", "a step number", "where the half is known",
    ),
    "local": ("nothing", "nothing", "with many examples per device"),
    "stale, forward": (
        "nothing", "21 floats per channel", "on shuffled shards; has a forward mode",
    ),
    "stale": (
        "nothing", "21 floats per channel", "with 2 examples per device or more",
    ),
}  # fmt: skip


def _in_short(result: Mapping[str, Any]) -> str:
    """One table of all that was found of every policy."""
    examples = result["options"]["usual"]
    losses = [
        (part, each, _lost(result, part, each))
        for part in ("examples", "sorted")
        for each in (examples, 2 * examples)
        if any(sizes(name)[1] == each for name in result["parts"][part])
    ]
    heads = [
        f"{result['options']['workers']} x {each}{', sorted' * (part == 'sorted')}"
        for part, each, _ in losses
    ]
    rows = [
        [policy, *(f"{100 * lost[policy]:.1f}" for _, _, lost in losses), *words]
        for policy, words in _WORDS.items()
        if all(policy in lost for _, _, lost in losses)
    ]
    return (
        "In short, points of accuracy lost against exact synchronisation, by workers "
        "and examples of each:\n\n"
        + output.markdown(
            ["policy", *heads, "layers wait for", "remembers", "use it"], rows
        )
    )


def _accuracies(result: Mapping[str, Any], part: str, title: str) -> str:
    settings = _in_order(result["parts"][part])
    names = [
        name
        for name in policies.NAMES
        if any(name in found for found in settings.values())
    ]
    rows = [
        [
            policy,
            *(
                output.spread(_end(found[policy])) if policy in found else "-"
                for found in settings.values()
            ),
        ]
        for policy in names
    ]
    heads = [name.removesuffix(", sorted") for name in settings]
    return (
        f"{title}, test accuracy after {result['steps'][-1]} steps by workers and "
        "examples of each, mean of seeds and half their range:\n\n"
        + output.markdown(["policy", *heads], rows)
    )


def _in_order(settings: Mapping[str, Any]) -> dict[str, Any]:
    """By examples per worker; JSON sorts names as words."""
    return dict(sorted(settings.items(), key=lambda item: sizes(item[0])))


def sizes(setting: str) -> tuple[int, ...]:
    """Workers and examples, from the name of a setting."""
    return tuple(int(each) for each in setting.split(",")[0].split(" x "))


def _rates(result: Mapping[str, Any]) -> str:
    ((setting, found),) = result["parts"]["rates"].items()
    rates = result["options"]["rates"]
    rows = [
        [policy, *(output.spread(column) for column in _end(each).T)]
        for policy, each in found.items()
    ]
    return f"Learning rates, {setting}:\n\n" + output.markdown(["policy", *rates], rows)


def _memory(result: Mapping[str, Any]) -> str:
    settings = result["parts"]["memory"]
    memories = result["options"]["memories"]
    rows = [
        [
            f"{setting}, {how}",
            *(
                output.spread(_end(found[f"stale, a = {memory}{suffix}"]))
                for memory in memories
            ),
        ]
        for setting, found in settings.items()
        for how, suffix in (("both ways", ""), ("forward", ", forward"))
    ]
    return "Memory a of stale statistics:\n\n" + output.markdown(
        ["workers and examples", *memories], rows
    )


def _switch(result: Mapping[str, Any]) -> str:
    ((setting, found),) = result["parts"]["switch"].items()
    steps = np.array(result["steps"])
    after = np.flatnonzero(steps > steps[-1] // 2)[:3]
    shown = [len(steps) // 2 - 1, *after, len(steps) - 1]
    rows = [
        [
            policy,
            *(output.spread(np.array(each["accuracy"][i], float)) for i in shown),
        ]
        for policy, each in found.items()
    ]
    return (
        f"Images become their negatives after {steps[-1] // 2} steps, {setting}; "
        "accuracy on images of the moment, after so many steps:\n\n"
        + output.markdown(["policy", *steps[shown]], rows)
    )


def _why(result: Mapping[str, Any]) -> str:
    rows = []
    for setting, found in result["parts"]["why"].items():
        for policy, each in found.items():
            cosine, length = (
                np.array(each[name], float).mean((0, 1))
                for name in ("cosine", "length")
            )
            rows.append([setting, policy, _several(cosine), _several(length)])
    return (
        "The gradient of each layer beside the exact one at the same weights, mean of "
        "all records:\n\n"
        + output.markdown(
            ["workers and examples", "policy", "cosine", "relative length"], rows
        )
    )


def _drift(result: Mapping[str, Any]) -> str:
    ((setting, found),) = result["parts"]["drift"].items()
    drift = np.array(found["exact"]["drift"], float).mean(1)  # [records, lags, layers]
    moments = {"first record": drift[0], "last record": drift[-1]}
    rows = [
        [moment, lag, _several(values[i])]
        for moment, values in moments.items()
        for i, lag in enumerate(result["lags"])
    ]
    noise = 1 / np.sqrt(np.prod(sizes(setting)))
    return (
        "How far means move within some steps, in standard deviations of each layer's "
        f"inputs ({setting}, exact; that of a mini-batch is off by {noise:.2f}):\n\n"
        + output.markdown(["at", "steps", "distance, by layer"], rows)
    )


def _several(values: Sequence[float] | np.ndarray) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


_PARTS = {
    "examples": functools.partial(
        _accuracies, part="examples", title="Shuffled shards"
    ),
    "sorted": functools.partial(
        _accuracies, part="sorted", title="Shards sorted by label"
    ),
    "many": functools.partial(_accuracies, part="many", title="Many workers"),
    "rates": _rates,
    "memory": _memory,
    "switch": _switch,
    "why": _why,
    "drift": _drift,
}
