"""The figure of the study: saturated units, and the gradient by layer."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.framework import curves

_COLORS = {"with_bn": "tab:blue", "without_bn": "tab:orange"}
_STYLES = ("-", "--", ":")


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws idle units of the last layer and the gradient by layer, per activation."""
    config, steps = result["config"], np.array(result["steps"])
    activations = config["activations"]
    figure, panels = plt.subplots(
        1, 2 * len(activations), figsize=(5.5 * len(activations), 3.8),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for i, activation in enumerate(activations):
        left, right = panels[0][2 * i : 2 * i + 2]
        for network, color in _COLORS.items():
            run = result["runs"][f"{network}_{activation}"]
            idle = np.array(run["saturated"], float)[..., -1]
            gradient = np.array(run["gradient"], float)[-1]
            places = np.arange(1, gradient.shape[-1] + 1)
            for scale, style in enumerate(_STYLES[: len(config["scales"])]):
                mine = idle[:, :, scale]
                if np.isnan(mine[-1]).any():
                    word = f"without BN, x{config['scales'][scale]:g}: diverged"
                    right.text(0.5, 0.05, word, fontsize=7, ha="center",
                               transform=right.transAxes)  # fmt: skip
                curves.draw(left, steps, mine, style, color=color)
                label = network.replace("_", " ").replace("bn", "BN")
                right.semilogy(
                    places, gradient[:, scale].mean(0), style, color=color, marker=".",
                    label=f"{label}, weights x{config['scales'][scale]:g}",
                )  # fmt: skip
        word = "inactive" if activation == "relu" else "saturated"
        left.set(
            xlabel="step", ylim=(-0.02, 1.02), title=f"{activation}: share {word}",
        )  # fmt: skip
        left.set_ylabel("last hidden layer", fontsize=8)
        right.set(xlabel="hidden layer", title="gradient, last layer's = 1")
        right.set(xticks=places, ylim=(1e-3, 10))
    handles, labels = panels[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure
