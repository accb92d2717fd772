"""The figure of the study: accuracy in training, by place of the normalisation."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.framework import curves

_COLORS = {"before": "tab:blue", "after": "tab:green", "none": "tab:orange"}
_RESIDUAL = {
    "before the sum, per channel": "tab:blue",
    "after the sum, per channel": "tab:green",
    "before the sum, per activation": "tab:purple",
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws a panel per nonlinearity, and one for the residual network."""
    activations = result["options"]["activations"]
    figure, panels = plt.subplots(
        1, len(activations) + 1, figsize=(12, 3.6), layout="constrained"
    )
    connected, residual = (
        result["parts"][name] for name in ("fully connected", "residual")
    )
    for axes, activation in zip(panels, activations, strict=False):
        for place, color in _COLORS.items():
            values = connected["accuracy"][f"{activation}, {place}"]
            label = place if place == "none" else f"{place} it"
            curves.draw(axes, connected["step"], values, color=color, label=label)
        axes.set_title(f"{activation}: BN before or after it", fontsize=10)
    for name, color in _RESIDUAL.items():
        values = residual["accuracy"][name]
        curves.draw(panels[-1], residual["step"], values, color=color, label=name)
    panels[-1].set_title("residual network", fontsize=10)
    panels[0].set_ylabel("test accuracy")
    for axes in panels:
        axes.set_xlabel("step")
        axes.legend(fontsize=8, loc="lower right")
    return figure
