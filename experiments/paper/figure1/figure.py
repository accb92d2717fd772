"""Draws Figure 1 in the form of the paper."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.data import datasets
from experiments.framework import curves
from experiments.paper.figure1 import paper

_COLORS = {"with_bn": "tab:blue", "without_bn": "tab:orange"}
_LABELS = {"with_bn": "with BN", "without_bn": "without BN"}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws the three panels of Figure 1, with the paper's own curves for MNIST.

    The paper's curves are dashed and labelled as such.
    """
    steps = np.array(result["step"])
    with_paper = result["config"]["dataset"] == "mnist"
    figure, (left, *right) = plt.subplots(
        1, 3, figsize=(13, 3.8), width_ratios=(5, 4, 4)
    )
    for network, color in _COLORS.items():
        accuracy = np.array(result["accuracy"][network])
        label = f"ours, {_LABELS[network]}"
        curves.draw(left, steps, accuracy, color=color, label=label)
        if with_paper:
            values = paper.ACCURACY[network]
            left.plot(
                paper.ACCURACY_STEPS[: len(values)],
                values,
                "--",
                color=color,
                marker=".",
                label=f"the paper's, {_LABELS[network]}",
            )
    left.set(title="(a) test accuracy", xlabel="step", ylim=(0.7, 1.0))
    left.legend(loc="lower right")
    for axes, network, letter in zip(
        right, ("without_bn", "with_bn"), "bc", strict=True
    ):
        traces = np.array(result["percentiles"][network])
        axes.fill_between(
            steps, traces[:, 0], traces[:, 2], color="tab:gray", alpha=0.3
        )
        axes.plot(steps, traces, color="black", lw=1, label=["ours", None, None])
        if with_paper:
            for values in paper.TRACES[network]:
                axes.plot(paper.PERCENTILE_STEPS, values, "--", color="tab:red", lw=1)
            axes.plot([], [], "--", color="tab:red", lw=1, label="the paper's")
            axes.legend(loc="upper center", ncols=2)
        percentiles = ", ".join(str(p) for p in paper.PERCENTILES)
        axes.set(
            title=f"({letter}) input of a sigmoid, {_LABELS[network]}",
            xlabel="step",
            ylabel=f"percentiles {percentiles}" if letter == "b" else None,
            ylim=(-3, 3.2),
        )
    seeds = result["config"]["seeds"]
    title = datasets.PIXELS[result["config"]["dataset"]].title
    figure.suptitle(
        f"{title}, {seeds} seed{'s' if seeds > 1 else ''}",
        fontsize=10,
    )
    figure.tight_layout()
    return figure
