"""The figure of the study: effective learning rates and singular values."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.framework import curves

_COLORS = {"with_bn": "tab:blue", "without_bn": "tab:orange"}
_LABELS = {"with_bn": "with BN", "without_bn": "without BN"}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws effective learning rates (left, middle) and singular values (right)."""
    config, steps = result["config"], result["steps"]
    activation = config["activations"][0]
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    panels[1].sharey(panels[0])
    for axes, (network, color) in zip(panels, _COLORS.items(), strict=False):
        run = result["runs"][f"{network}_{activation}"]
        norm = np.array(run["norm"], float)[..., -1]  # It is the last hidden layer.
        predicted = np.array(run["predicted"], float)[..., -1]
        rate = config["learning_rate"]
        for place in range(norm.shape[2]):
            mine = rate / norm[:, :, place]
            curves.draw(axes, steps, mine, color=color, lw=1.5)
            told = rate / predicted[:, :, place].mean(1)
            axes.semilogy(steps, told, "k:", lw=1.2)
        axes.plot([], [], color=color, label="measured")
        axes.plot([], [], "k:", label="of squared steps alone")
        scales = ", ".join(f"{scale:g}" for scale in config["scales"])
        axes.set(xlabel="step", title=f"{activation}, {_LABELS[network]}")
        axes.set_ylabel(f"learning rate / |W|², from scales {scales}")
        axes.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 0.12))
    customary = int(np.argmin(np.abs(np.log(config["scales"]))))
    for network, color in _COLORS.items():
        for name, style in zip(config["activations"], ("-", "--", ":"), strict=False):
            values = np.array(result["runs"][f"{network}_{name}"]["singular"], float)
            values = np.sort(values[customary].ravel())
            lost = ", diverged" if np.isnan(values).any() else ""
            panels[2].plot(
                np.linspace(0, 100, len(values)), values, style, color=color,
                label=f"{name}, {_LABELS[network]}{lost}",
            )  # fmt: skip
    panels[2].axhline(1, color="black", lw=0.5)
    panels[2].set(
        xlabel="percentile", title="singular values of Jacobians", ylim=(0, 3)
    )
    panels[2].legend(fontsize=7)
    return figure
