"""The figure of the study: the growth of biases that have no effect."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.framework import curves

_COLORS = {
    "BN": "tab:blue",
    "centred inside": "tab:cyan",
    "centred outside": "tab:orange",
    "centred and scaled outside": "tab:red",
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws the bias of one unit, and biases and loss of a network.

    A cross marks records at which all seeds had diverged.
    """
    steps = np.array(result["steps"])
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 3.8), layout="constrained"
    )
    for name, color in _COLORS.items():
        bias = np.array(result["unit"][name]["bias"], float)
        left.plot([0, *steps], np.abs(bias), color=color, label=name)
        network = result["networks"][name]
        for axes, key in ((middle, "bias"), (right, "loss")):
            values = np.array(network[key], float)
            curves.draw(axes, steps, values, color=color)
            lost = steps[~np.isfinite(values).any(1)]
            axes.plot(
                lost, np.full(len(lost), 0.97), "x", color=color,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
    for axes in (left, middle):
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(-0.02)
    right.set_yscale("log")
    left.set(title="one unit", xlabel="step", ylabel="|bias|")
    middle.set(title="a network", xlabel="step", ylabel="size of all biases")
    right.set(title="its loss", xlabel="step")
    left.plot([], [], "kx", label="all seeds diverged")
    left.legend(fontsize=7)
    return figure
