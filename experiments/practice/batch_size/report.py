"""The tables and the verdict of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

ADVISED = (8, 32)
"""The range of batch sizes that is advised with Batch Normalization."""
CLEAR = 0.01
"""Accuracy counts as fallen if it falls by more than this, a point."""


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join([verdicts.expected(statements(result)), _accuracy(result)])


def best_size(result: Mapping[str, Any], network: str = "BN") -> int:
    """Returns the batch size with the highest accuracy by the running statistics."""
    return max(_sizes(result), key=lambda size: _mean(result, size, network))


def statements(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns each expected statement, and True if the result confirms it."""
    smallest = _sizes(result)[0]
    falls = {
        network: _mean(result, best_size(result, network), network)
        - _mean(result, smallest, network)
        for network in ("BN", "GN", "LN")
    }
    running, batch = (
        _mean(result, smallest, "BN", how) for how in ("running", "batch")
    )
    low, high = ADVISED
    return {
        f"with BN the best batch size is {low} to {high}": (
            low <= best_size(result) <= high
        ),
        f"with BN accuracy falls at {smallest}": falls["BN"] > CLEAR,
        f"with Group and Layer Norm it falls less at {smallest}": (
            max(falls["GN"], falls["LN"]) < falls["BN"]
        ),
        f"at {smallest}, inference by batch statistics does better": batch > running,
    }


def verdict(result: Mapping[str, Any]) -> str:
    """Returns the verdict in words."""
    return verdicts.of(*statements(result).values())


def _accuracy(result: Mapping[str, Any]) -> str:
    columns = {
        "BN, running statistics": ("BN", "running"),
        "BN, whole training set": ("BN", "population"),
        "BN, test batches": ("BN", "batch"),
        "Group Norm": ("GN", "running"),
        "Layer Norm": ("LN", "running"),
    }
    rows = [
        [
            size,
            *(output.spread(_seeds(result, size, *of)) for of in columns.values()),
        ]
        for size in _sizes(result)
    ]
    about = result["options"]
    return (
        f"Test accuracy after {about['epochs']} epochs, mean of {about['seeds']} seeds "
        "and half their range; Batch Normalization by three statistics in inference:"
        "\n\n" + output.markdown(["batch size", *columns], rows)
    )


def _sizes(result: Mapping[str, Any]) -> list[int]:
    return sorted(map(int, result["sizes"]))


def _seeds(
    result: Mapping[str, Any], size: int, network: str, how: str = "running"
) -> np.ndarray:
    """Returns the accuracies at the end, `[seeds]`."""
    return np.array(result["sizes"][str(size)][network][how][-1])


def _mean(*of: Any) -> float:
    return float(_seeds(*of).mean())
