"""The figure of the study: error against the number of networks that are averaged."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.framework import curves
from experiments.paper.crops_and_ensemble import report

_CURVES = {
    "1": ("tab:gray", "one crop"),
    "144": ("tab:blue", "144 crops"),
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws our errors (left, means over choices of networks) and the paper's."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.8), width_ratios=(5, 2), layout="constrained"
    )
    for crops, (color, label) in _CURVES.items():
        by_size = result["errors"][crops]
        networks = [int(count) for count in by_size]
        # [networks, seeds]
        errors = 100 * np.array([np.mean(each, 0) for each in by_size.values()])
        curves.draw(left, networks, errors, "o-", color=color, label=label)
        single = 100 * np.array(result["single"][crops])
        left.plot(0.85, single.mean(), "D", color=color, markersize=8)
        left.vlines(0.85, single.min(), single.max(), color=color)
    left.plot([], [], "D", color="black", label="a network without the six's changes")
    left.set(xlabel="networks whose probabilities are averaged", ylabel="test error, %")
    seeds = len(result["drops"]["crops"]["seeds"])
    left.set_title(
        f"Does each stage lower the error? {result['dataset']}, {seeds} seeds (band)",
        fontsize=10,
    )
    left.legend(fontsize=8)

    values = [100 * error for error in report.ERRORS.values()]
    places = range(len(values))
    right.bar(places, values, color=["tab:gray", "tab:blue", "tab:green"], alpha=0.7)
    for place, value in zip(places, values, strict=True):
        right.text(place, value + 0.4, f"{value:.1f}", ha="center", fontsize=8)
    names = ["one crop", "144 crops", "144 crops,\nsix networks"]
    right.set_xticks(places, names, fontsize=8)
    right.set(ylabel="top-1 error, %", ylim=(0, 30))
    right.set_title("The paper, ImageNet", fontsize=10)
    return figure
