"""The figure of the study: the return by steps in the environment."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.framework import curves
from experiments.practice.reinforcement import report

_COLORS = ("tab:blue", "tab:cyan", "tab:orange", "tab:gray")


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws the mean and the range over seeds of every agent."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, color in zip(result["agents"], _COLORS, strict=False):
        found = report.returns(result, name)
        curves.draw(axes, result["step"], found, color=color, label=name)
    axes.axhline(report.SOLVED, color="black", linewidth=0.7, linestyle=":")
    axes.set_xlabel("steps in the environment")
    axes.set_ylabel("return of an episode")
    axes.set_title(
        f"Pendulum, mean and range of {result['options']['seeds']} seeds", fontsize=10
    )
    axes.legend(fontsize=8)
    return figure
