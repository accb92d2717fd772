"""The figure of the study: a layer that learns to undo its normalisation."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.framework import curves


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws the errors of scale and bias by step, and the rest by batch size."""
    steps = np.array(result["steps"])
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    sizes = sorted(result["learnt"], key=int)
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(sizes)))
    for size, color in zip(sizes, colors, strict=True):
        for axes, name in zip(panels, ("scale", "bias"), strict=False):
            values = np.array(result["learnt"][size][name])
            curves.draw(axes, steps, values, color=color, label=f"batches of {size}")
            axes.set_yscale("log")
    panels[0].set(title="|scale / std - 1|", xlabel="step")
    panels[1].set(title="|bias - mean| / std", xlabel="step")
    panels[0].legend(fontsize=7)
    numbers = np.array([int(size) for size in sizes])
    for name, style in (("training", "o-"), ("evaluation", "s--")):
        last = [np.mean(result["learnt"][size][name][-1]) for size in sizes]
        panels[2].loglog(numbers, last, style, color="tab:blue", label=f"in {name}")
    panels[2].loglog(numbers, 1.5 / numbers, "k:", label="1.5 / batch size")
    panels[2].axhline(
        result["without_affine"], color="tab:red", lw=1, label="without scale and bias"
    )
    panels[2].set(title="change of the input, over var")
    panels[2].set(xlabel="batch size")
    panels[2].legend(fontsize=7)
    return figure
