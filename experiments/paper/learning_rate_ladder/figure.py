"""The figure of the study: the paper's Figure 2, and the steps that are saved."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.framework import curves
from experiments.networks import inception_paper as paper

_COLORS = {
    "Inception": "black",
    "BN-Baseline": "tab:red",
    "BN-x5": "tab:blue",
    "BN-x30": "tab:purple",
    "BN-x5-Sigmoid": "tab:green",
    "Inception-Sigmoid": "tab:gray",
    "Inception-x5": "tab:orange",
}
_COMPARED = ("BN-Baseline", "BN-x5", "BN-x30")


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws accuracy by step (left) and times fewer steps to Inception's best."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 3.8), width_ratios=(3, 2), layout="constrained"
    )
    _curves(left, result)
    _bars(right, result["runs"])
    return figure


def _curves(axes: Axes, result: Mapping[str, Any]) -> None:
    runs = result["runs"]
    target = curves.best(runs["Inception"])
    axes.axhline(target, color="black", linestyle=":", linewidth=1)
    for name, color in _COLORS.items():
        run = runs[name]
        curves.draw(axes, run["step"], run["accuracy"], color=color, label=name, lw=1.2)
        if (steps := curves.steps_to(run, target)) is not None:
            axes.plot(steps, target, "D", color=color, markersize=6)
    seeds = result["config"]["seeds"]
    axes.set(xscale="log", ylim=(0, 1), xlabel="training steps", ylabel="test accuracy")
    axes.set_title(
        f"When is Inception's best reached? {result['config']['dataset']}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}",
        fontsize=10,
    )
    axes.legend(fontsize=7, loc="lower right")


def _bars(axes: Axes, runs: Mapping[str, Any]) -> None:
    for place, name in enumerate(_COMPARED):
        ours = curves.times_fewer(runs[name], runs["Inception"])
        pair = ((-0.2, ours, 0.8), (0.2, paper.times_fewer(name), 0.3))
        for shift, ratio, alpha in pair:
            color = _COLORS[name]
            axes.bar(place + shift, ratio or 0, 0.36, color=color, alpha=alpha)
            text = "not reached" if ratio is None else f"{ratio:.1f}"
            axes.annotate(
                text, (place + shift, ratio or 0), ha="center", va="bottom", fontsize=8
            )
    axes.bar(0, 0, color="black", alpha=0.8, label="here")
    axes.bar(0, 0, color="black", alpha=0.3, label="the paper, ImageNet")
    axes.axhline(1, color="black", linewidth=0.5)
    axes.set_xticks(range(len(_COMPARED)), _COMPARED)
    axes.margins(y=0.12)
    axes.legend(fontsize=8, loc="upper left")
    axes.set_title("Times fewer steps than Inception", fontsize=10)
