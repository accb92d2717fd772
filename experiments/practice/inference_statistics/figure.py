"""The figure of the study: the bias of the variance, and the accuracies."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.framework import curves

_COLORS = {
    "truth": "black",
    "algorithm 2": "tab:blue",
    "ema": "tab:green",
    "window": "tab:olive",
    "cumulative": "tab:orange",
    "batch": "tab:gray",
}
_LABELS = {
    "truth": "whole training set, layer by layer",
    "algorithm 2": "Algorithm 2: mean over batches, weights fixed",
    "ema": "exponential average",
    "window": "window of batches",
    "cumulative": "average of all batches",
    "batch": "the test batch itself",
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws variance over the truth (left) and accuracy, against the batch size."""
    sizes = np.array(sorted(map(int, result["sizes"])))
    found = [result["sizes"][str(size)] for size in sizes]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, 3.9), width_ratios=(2, 3), layout="constrained"
    )
    fine = np.geomspace(sizes[0], sizes[-1], 100)
    left.plot(
        fine, (fine - 1) / fine, "--", color="tab:gray", lw=1, label="(m - 1) / m"
    )
    left.axhline(1, color="black", lw=0.5)
    for name, label, color in (
        ("algorithm 2", "with m / (m - 1)", "tab:blue"),
        ("algorithm 2, biased", "without", "tab:red"),
    ):
        ratios = [np.mean(each["after"][name]["ratio"], 0)[0] for each in found]
        left.plot(sizes, ratios, "o", color=color, label=label, markersize=5)
    left.set_title("First layer's variance over the truth", fontsize=10)
    left.legend(fontsize=8)

    for name, color in _COLORS.items():
        rows = np.array([_accuracy(each, name) for each in found])
        style = "o--" if name == "truth" else "o-"
        curves.draw(right, sizes, rows, style, color=color, markersize=4,
                    label=_LABELS[name])  # fmt: skip
    right.set_title("Test accuracy by the statistics of inference", fontsize=10)
    right.legend(fontsize=7.5)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("batch size m")
    return figure


def _accuracy(found: Mapping[str, Any], name: str) -> list[float]:
    """Returns the accuracy of every seed at the end."""
    if name in found["after"]:
        return found["after"][name]["accuracy"]
    return found["during"][name]["accuracy"][-1]
