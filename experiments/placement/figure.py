"""Accuracy while training, by the place of the normalisation."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLORS = {"before": "tab:blue", "after": "tab:green", "none": "tab:orange"}
_RESIDUAL = {
    "before the sum, per channel": "tab:blue",
    "after the sum, per channel": "tab:green",
    "before the sum, per activation": "tab:purple",
}


def draw(result: Mapping[str, Any]) -> Figure:
    """A panel per nonlinearity, and one of the residual network."""
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
            _line(axes, connected["step"], values, color, label)
        axes.set_title(f"{activation}: BN before or after it", fontsize=10)
    for name, color in _RESIDUAL.items():
        _line(panels[-1], residual["step"], residual["accuracy"][name], color, name)
    panels[-1].set_title("residual network", fontsize=10)
    panels[0].set_ylabel("test accuracy")
    for axes in panels:
        axes.set_xlabel("step")
        axes.legend(fontsize=8, loc="lower right")
    return figure


def _line(axes: Axes, steps: Any, values: Any, color: str, label: str) -> None:
    rows = np.array(values, np.float64)
    axes.plot(steps, rows.mean(1), color=color, label=label)
    axes.fill_between(steps, rows.min(1), rows.max(1), color=color, alpha=0.2, lw=0)
