"""The tables and the verdict of the study, from its JSON alone."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import curves, output, verdicts

NO_WORSE = 0.005
"""A place counts as no worse than another if it is lower by less than this."""

_BEST = "before the sum, per channel"
_WHEN = ("first quarter", "last quarter")


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join(
        [verdicts.expected(statements(result)), _connected(result), _residual(result)]
    )


def statements(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns each expected statement, and True if the result confirms it.

    The values are means over seeds and over the last quarter of the records.
    """
    last = {
        name: curves.quarters(each)[1].mean() for name, each in _found(result).items()
    }
    found = {}
    for activation in result["options"]["activations"]:
        before, after, none = (
            last[f"{activation}, {place}"] for place in ("before", "after", "none")
        )
        found[f"{activation}: before is no worse than after"] = (
            before > after - NO_WORSE
        )
        found[f"{activation}: both are better than none"] = min(before, after) > none
    for other, words in (
        ("after the sum, per channel", "before the sum is no worse than after it"),
        (
            "before the sum, per activation",
            "per channel is no worse than per activation",
        ),
    ):
        found[f"residual: {words}"] = last[_BEST] > last[other] - NO_WORSE
    return {words: bool(each) for words, each in found.items()}


def verdict(result: Mapping[str, Any]) -> str:
    """Returns the verdict in words."""
    return verdicts.of(*statements(result).values())


def _connected(result: Mapping[str, Any]) -> str:
    found = _found(result)
    places = ("before", "after", "none")
    rows = []
    for activation in result["options"]["activations"]:
        pairs = [curves.quarters(found[f"{activation}, {place}"]) for place in places]
        rows.append(
            [
                activation,
                *map(output.spread, itertools.chain(*zip(*pairs, strict=True))),
            ]
        )
    header = [f"{place}, {when}" for when in _WHEN for place in places]
    steps = result["parts"]["fully connected"]["step"][-1]
    return (
        f"Test accuracy of the fully connected networks in {steps:,} steps, mean of "
        f"{result['options']['seeds']} seeds and half their range:\n\n"
        + output.markdown(["nonlinearity", *header], rows)
    )


def _residual(result: Mapping[str, Any]) -> str:
    part, found = result["parts"]["residual"], _found(result)
    rows = [
        [name, *map(output.spread, curves.quarters(found[name]))]
        for name in part["accuracy"]
    ]
    return (
        f"Test accuracy of the residual network in {part['step'][-1]:,} steps:\n\n"
        + output.markdown(["normalisation", *_WHEN], rows)
    )


def _found(result: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the accuracy of each network, `[records, seeds]`.

    It is 0 where a network diverged.
    """
    return {
        name: np.nan_to_num(np.array(values, np.float64))
        for part in result["parts"].values()
        for name, values in part["accuracy"].items()
    }
