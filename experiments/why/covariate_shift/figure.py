"""The figure of the study: percentiles, covariate shift, smoothness and accuracy."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

_COLORS = {
    "without BN": "tab:orange",
    "BN": "tab:blue",
    "noisy BN": "tab:green",
    "noise without BN": "tab:red",
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws percentiles of the last layer above, and three quantities below."""
    steps = np.array(result["step"])
    figure, panels = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for axes, name in zip(panels[0], ("without BN", "BN", "noisy BN"), strict=True):
        traces = _array(result, name, "traces")[-1]
        axes.fill_between(
            steps, traces[:, 0], traces[:, 2], color=_COLORS[name], alpha=0.25, lw=0
        )
        axes.plot(steps, traces, color=_COLORS[name], lw=1)
        axes.set_title(f"{name}: input of a unit of the last layer", fontsize=9)
    panels[0][0].set_ylabel("percentiles 15, 50, 85")
    low, high = zip(*(axes.get_ylim() for axes in panels[0]), strict=True)
    for axes in panels[0]:
        axes.set_ylim(min(low), max(high))

    for axes, quantity, title in zip(
        panels[1],
        ("shift_distance", "relative_change", "accuracy"),
        (
            "shift by gradients, mean over layers",
            "change of the gradient within a few steps",
            "test accuracy",
        ),
        strict=True,
    ):
        for name, color in _COLORS.items():
            values = _array(result, name, quantity)
            if quantity == "shift_distance":
                values = values[:, :, 1:].mean(-1)
            axes.plot(steps, np.median(values, 1), color=color, label=name, lw=1.5)
            if quantity == "accuracy":
                axes.fill_between(
                    steps, values.min(1), values.max(1), color=color, alpha=0.2, lw=0
                )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step")
        if quantity != "accuracy":
            axes.set_yscale("log")
    panels[1][2].legend(fontsize=8, loc="lower right")
    return figure


def _array(result: Mapping[str, Any], name: str, quantity: str) -> np.ndarray:
    """Returns the values; None becomes NaN, which is not drawn."""
    return np.array(result["networks"][name][quantity], np.float64)
