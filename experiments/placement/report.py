"""The tables of the study and its verdict, made from its JSON alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import output, verdicts
from experiments.placement import figure

NO_WORSE = 0.005
"""A place is no worse than another if it is less than half a point below it."""

_BEST = "before the sum, per channel"


def write(path: pathlib.Path) -> str:
    """Writes `.md` and `.png` beside the JSON at `path`; returns the text."""
    return output.write_pages(path, table, {"": figure.draw})


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    return "\n\n".join([_verdict(result), _connected(result), _residual(result)])


def statements(result: Mapping[str, Any]) -> dict[str, bool]:
    """What was expected, and whether it was found (means over seeds, at the end)."""
    last = {name: each[-1].mean() for name, each in accuracies(result).items()}
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


def accuracies(result: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """By network, `[records, seeds]`; 0 for one that diverged."""
    return {
        name: np.nan_to_num(np.array(values, np.float64))
        for part in result["parts"].values()
        for name, values in part["accuracy"].items()
    }


def verdict(result: Mapping[str, Any]) -> str:
    """In plain words."""
    return verdicts.of(*statements(result).values())


def _verdict(result: Mapping[str, Any]) -> str:
    rows = [
        [words, "yes" if found else "no"] for words, found in statements(result).items()
    ]
    made = output.markdown(["expected", "found"], rows)
    return f"Verdict: {verdict(result)}.\n\n{made}"


def _connected(result: Mapping[str, Any]) -> str:
    found = accuracies(result)
    steps = result["parts"]["fully connected"]["step"]
    early = len(steps) // 4
    rows = [
        [
            activation,
            *(
                _words(found[f"{activation}, {place}"][record])
                for record in (early, -1)
                for place in ("before", "after", "none")
            ),
        ]
        for activation in result["options"]["activations"]
    ]
    header = ["nonlinearity"] + [
        f"{place}, {steps[record]:,} steps"
        for record in (early, -1)
        for place in ("before", "after", "none")
    ]
    return (
        f"Test accuracy of the fully connected networks, mean of "
        f"{result['options']['seeds']} seeds and half their range:\n\n"
        + output.markdown(header, rows)
    )


def _residual(result: Mapping[str, Any]) -> str:
    part = result["parts"]["residual"]
    found = accuracies(result)
    middle = len(part["step"]) // 2
    rows = [
        [name, *(_words(found[name][record]) for record in (middle, -1))]
        for name in part["accuracy"]
    ]
    steps = [f"{part['step'][record]:,} steps" for record in (middle, -1)]
    return "Test accuracy of the residual network:\n\n" + output.markdown(
        ["normalisation", *steps], rows
    )


def _words(seeds: np.ndarray) -> str:
    return f"{seeds.mean():.4f} ± {np.ptp(seeds) / 2:.4f}"
