"""The figure of the study: accuracy in training, and the effect of more padding."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.framework import curves

_COLORS = {
    "none": "tab:gray",
    "BN over padding": "tab:red",
    "masked BN": "tab:blue",
    "masked BN, shared": "tab:cyan",
    "Layer Norm": "tab:orange",
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws learning curves, and the change of the logits by more padding."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
    for axes, network in zip(panels, ("feed-forward", "recurrent"), strict=False):
        for kind, color in _COLORS.items():
            if f"{network}, {kind}" not in result["networks"]:
                continue
            found = result["networks"][f"{network}, {kind}"]
            curves.draw(
                axes, result["step"], found["accuracy"], color=color, label=kind
            )
        axes.set_title(f"{network}: test accuracy", fontsize=10)
        axes.set_xlabel("step")
        axes.legend(fontsize=7.5, loc="lower right")

    last, place, labels = panels[2], 0, []
    for network in ("feed-forward", "recurrent"):
        for kind in ("BN over padding", "masked BN", "Layer Norm"):
            change = result["networks"][f"{network}, {kind}"]["change"][-1]
            last.bar(place, np.mean(np.array(change, np.float64)), color=_COLORS[kind])
            labels.append(f"{network},\n{kind}")
            place += 1
    last.set_xticks(range(place), labels, fontsize=6.5, rotation=40, ha="right")
    last.set_title("change of the logits by more padding", fontsize=10)
    return figure
