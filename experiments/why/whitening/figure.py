"""The figure of the study: reasons not to whiten fully."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.framework import curves

_COLORS = {"BN": "tab:blue", "whitening": "tab:orange", "none": "tab:gray"}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws the cost, the variance from few examples, and the accuracy of networks."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 3.8), layout="constrained"
    )
    for norm in ("BN", "whitening"):
        color = _COLORS[norm]
        units = [row["units"] for row in result["cost"]]
        times = [row["ms"][norm] for row in result["cost"]]
        left.loglog(units, times, "o-", color=color, label=norm)
        examples = [row["examples"] for row in result["few"]]
        variance = [row["variance"][norm] for row in result["few"]]
        middle.loglog(examples, variance, "o-", color=color)
    middle.axhline(1, color="black", lw=0.5)
    middle.axvline(32, color="black", lw=0.5, ls=":")
    steps = np.array(result["steps"])
    styles = ("--", "-", ":")
    for size, style in zip(result["config"]["batch_sizes"], styles, strict=False):
        for norm, color in _COLORS.items():
            values = np.array(result["trained"][f"{norm}, {size}"]["accuracy"])
            curves.draw(right, steps, values, style, color=color)
        right.plot([], [], style, color="black", label=f"batches of {size}")
    left.plot([], [], color=_COLORS["none"], label="no normalisation")
    left.set_xticks(units, [str(each) for each in units])
    left.minorticks_off()
    left.set(title="ms of output and gradient", xlabel="units")
    middle.set(title="variance of other examples", xlabel="examples, of 32 units")
    right.set(title="test accuracy", xlabel="step", ylim=(0, 1))
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    return figure
