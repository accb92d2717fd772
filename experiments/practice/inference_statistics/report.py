"""The tables and the verdict of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

BIAS = 0.03
"""The error that the first layer's variance may have. The mean over some thousand
examples has an error of about .01 itself."""
TRACKS = 0.01
"""Statistics serve inference if they lose less accuracy than this to the exact ones."""

_ACCURACIES = ("truth", "algorithm 2", "algorithm 2, biased", "ema", "ema, biased",
               "debiased", "window", "cumulative", "batch")  # fmt: skip
_DISTANCES = ("algorithm 2", "ema", "debiased", "window", "cumulative")


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join(
        [
            _verdict(result),
            _bias(result),
            _accuracy(result, -1, "Test accuracy at the end"),
            _accuracy(result, 0, "Test accuracy at first"),
            _distance(result, 0, "first"),
            _distance(result, -1, "last"),
        ]
    )


def statements(result: Mapping[str, Any]) -> dict[str, list[int]]:
    """Returns the paper's statements and the batch sizes where they do not hold."""
    tests = {
        "with m / (m - 1) the variance is right": lambda each: (
            abs(_mean(each, "algorithm 2", "ratio")[0] - 1) < BIAS
        ),
        "the average over batches at fixed weights serves inference": lambda each: (
            _gap(each, "algorithm 2") < TRACKS
        ),
        "the moving average tracks the accuracy": lambda each: (
            _gap(each, "ema") < TRACKS
        ),
    }
    return {
        statement: [size for size, each in by_size(result).items() if not holds(each)]
        for statement, holds in tests.items()
    }


def by_size(result: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Returns the results in the order of the batch sizes."""
    return {
        size: result["sizes"][str(size)] for size in sorted(map(int, result["sizes"]))
    }


def verdict(result: Mapping[str, Any]) -> str:
    """Returns the verdict in words."""
    return verdicts.of(*(not failed for failed in statements(result).values()))


def _verdict(result: Mapping[str, Any]) -> str:
    rows = [
        [statement, "holds" if not failed else f"not at {_listed(failed)}"]
        for statement, failed in statements(result).items()
    ]
    return f"Verdict: {verdict(result)}.\n\n" + output.markdown(
        ["the paper's statement", "at the batch sizes tried"], rows
    )


def _bias(result: Mapping[str, Any]) -> str:
    rows = []
    for m, each in by_size(result).items():
        values = [
            _mean(each, name, "ratio")[0]
            for name in ("algorithm 2", "algorithm 2, biased")
        ]
        rows.append([m, *(f"{v:.3f}" for v in values), f"{(m - 1) / m:.3f}"])
    header = ["batch size", "with m / (m - 1)", "without", "(m - 1) / m"]
    return (
        "Variance of the first layer by Algorithm 2, over that of the whole training "
        "set:\n\n" + output.markdown(header, rows)
    )


def _accuracy(result: Mapping[str, Any], record: int, title: str) -> str:
    names = [
        name
        for name in _ACCURACIES
        if record == -1 or not name.startswith("algorithm 2")
    ]
    rows = []
    for size, each in by_size(result).items():
        values = [_seeds(each, name, "accuracy", record) for name in names]
        rows.append([size, *map(output.spread, values)])
    steps = result["step"][record]
    return (
        f"{title}, after {steps:,} steps, by the statistics that inference uses (mean "
        f"of {result['options']['seeds']} seeds, half their range):\n\n"
        + output.markdown(["batch size", *names], rows)
    )


def _distance(result: Mapping[str, Any], layer: int, name_of_layer: str) -> str:
    rows = [
        [
            size,
            *(
                f"{_mean(each, name, quantity)[layer]:.3f}"
                for quantity in ("mean", "var")
                for name in _DISTANCES
            ),
        ]
        for size, each in by_size(result).items()
    ]
    header = ["batch size"] + [
        f"{quantity}, {name}"
        for quantity in ("mean", "variance")
        for name in _DISTANCES
    ]
    return (
        f"Distance to the truth of the {name_of_layer} layer at the end (means in "
        "standard deviations of the unit, variances as logarithms; root mean squares "
        "over units):\n\n" + output.markdown(header, rows)
    )


def _gap(found: Mapping[str, Any], name: str) -> float:
    """Returns the accuracy that is lost against the exact statistics."""
    return float(_mean(found, "truth", "accuracy") - _mean(found, name, "accuracy"))


def _mean(found: Mapping[str, Any], name: str, quantity: str) -> np.ndarray:
    """Returns the mean over seeds at the end."""
    return _seeds(found, name, quantity, -1).mean(0)


def _seeds(
    found: Mapping[str, Any], name: str, quantity: str, record: int
) -> np.ndarray:
    """Returns the values of every seed at a record, `[seeds, ...]`."""
    if name in found["after"]:
        return np.array(found["after"][name][quantity])
    return np.array(found["during"][name][quantity])[record]


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))
