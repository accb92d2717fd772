"""The tables and the verdict of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

CLEAR = 0.01
"""Accuracies differ if they differ by more than this, a point."""
RELATIVES = ("Renorm", "MABN", "CBN", "FRN", "Group Norm", "Layer Norm")


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join(
        [
            verdicts.expected(statements(result)),
            _accuracy(result),
            _inference(result),
            _rates(result),
        ]
    )


def statements(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns each expected statement, and True if the result confirms it."""
    smallest, largest = sizes(result)[0], sizes(result)[-1]
    gain = {
        (size, kind): (seeds(result, size, kind) - seeds(result, size, "BN")).mean()
        for size in (smallest, largest)
        for kind in RELATIVES
    }
    found = {
        f"at {smallest}, {kind} is better than BN": gain[smallest, kind] > CLEAR
        for kind in RELATIVES
    }
    weighted = seeds(result, smallest, "BN", weight(result, smallest)).mean()
    found[f"at {smallest}, example weights make BN better"] = (
        weighted - seeds(result, smallest, "BN").mean() > CLEAR
    )
    found[f"at {largest}, none is better than BN by a point"] = (
        max(gain[largest, kind] for kind in RELATIVES) <= CLEAR
    )
    return {words: bool(each) for words, each in found.items()}


def verdict(result: Mapping[str, Any]) -> str:
    """Returns the verdict in words."""
    return verdicts.of(*statements(result).values())


def sizes(result: Mapping[str, Any]) -> list[int]:
    """Returns the batch sizes in ascending order."""
    return sorted(map(int, result["sizes"]))


def rate(result: Mapping[str, Any], size: int, kind: str) -> int:
    """Returns the place of the learning rate that is best on the validation part."""
    found = result["sizes"][str(size)][kind]["validation"]["running"]
    return int(np.nan_to_num(np.array(found, np.float64)).mean(0).argmax())


def seeds(
    result: Mapping[str, Any],
    size: int,
    kind: str,
    way: str = "running",
    split: str = "test",
) -> np.ndarray:
    """Returns the accuracies at the chosen learning rate, `[seeds]`."""
    found = np.array(result["sizes"][str(size)][kind][split][way], np.float64)
    return np.nan_to_num(found)[:, rate(result, size, kind)]


def weight(result: Mapping[str, Any], size: int) -> str:
    """Returns the example weight that is best on the validation part."""
    ways = [way for way in result["sizes"][str(size)]["BN"]["test"] if "example" in way]
    return max(ways, key=lambda w: seeds(result, size, "BN", w, "validation").mean())


def _accuracy(result: Mapping[str, Any]) -> str:
    kinds = ["BN", *RELATIVES]
    rows = [
        [size, *(output.spread(seeds(result, size, kind)) for kind in kinds)]
        for size in sizes(result)
    ]
    about = result["options"]
    return (
        f"Test accuracy after {about['epochs']} epochs of {about['examples']:,} images "
        f"of {about['dataset']}, mean of {about['seeds']} seeds and half their range:"
        "\n\n" + output.markdown(["batch size", *kinds], rows)
    )


def _inference(result: Mapping[str, Any]) -> str:
    rows = []
    for size in sizes(result):
        best = weight(result, size)
        rows.append(
            [
                size,
                output.spread(seeds(result, size, "BN")),
                output.spread(seeds(result, size, "BN", best)),
                best.removeprefix("example "),
                output.spread(seeds(result, size, "BN", "test batch")),
            ]
        )
    header = ["batch size", "running statistics", "with each example", "its weight",
              "test batches of 100"]  # fmt: skip
    return (
        "The same networks with BN, by the statistics of inference:\n\n"
        + output.markdown(header, rows)
    )


def _rates(result: Mapping[str, Any]) -> str:
    kinds = ["BN", *RELATIVES]
    rates = result["options"]["rates"]
    rows = [
        [size, *(rates[rate(result, size, kind)] for kind in kinds)]
        for size in sizes(result)
    ]
    return (
        f"Chosen learning rates, divided by the batch size, out of {rates}:\n\n"
        + output.markdown(["batch size", *kinds], rows)
    )
