"""The tables and the verdict of the study, from its JSON alone."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts
from experiments.library.sync_policies import report_parts

POINT = 0.01
"""One point of accuracy."""
NEAR, NEAR_SORTED = 0.5 * POINT, POINT
"""The accuracy that stale statistics may lose, on shuffled and on sorted shards."""
TARGET_EXAMPLES = (2, 4, 8)
"""The numbers of examples per worker at which `NEAR` must hold."""


Measure = Callable[[Mapping[str, Any]], np.ndarray]


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    made = [verdicts.expected(statements(result)), _in_short(result)]
    return "\n\n".join(made + report_parts.tables(result))


def statements(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns each expected statement, and True if the result confirms it."""
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
                _lost(result, "examples", few, report_parts.mean),
                _lost(result, "sorted", few, report_parts.mean),
            )
        ),
    }


def verdict(result: Mapping[str, Any]) -> str:
    """Returns the verdict in words."""
    return verdicts.of(*statements(result).values())


def _lost(
    result: Mapping[str, Any], part: str, examples: int, measure: Measure | None = None
) -> dict[str, float]:
    """Returns what each policy loses against `exact`.

    The default measure is the accuracy at the end.
    """
    settings = result["parts"][part]
    found = next(
        each
        for name, each in settings.items()
        if report_parts.sizes(name)[1] == examples
    )
    made = {
        policy: (measure or report_parts.end)(each).mean()
        for policy, each in found.items()
    }
    return {policy: float(made["exact"] - value) for policy, value in made.items()}


_TWICE = "every layer, twice"
# For each policy the wait of the layers, its memory, and when to use it.
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
    "stale, half": (
        "nothing", "21 floats per channel", "on shards of different kinds",
    ),
    "stale": (
        "nothing", "21 floats per channel", "with 2 examples per device or more",
    ),
}  # fmt: skip


def _in_short(result: Mapping[str, Any]) -> str:
    """Returns one table that sums up each policy."""
    examples = result["options"]["usual"]
    losses = [
        (part, each, _lost(result, part, each))
        for part in ("examples", "sorted")
        for each in (examples, 2 * examples)
        if any(report_parts.sizes(name)[1] == each for name in result["parts"][part])
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
