"""The figure of the study: the paper's Figure 2, and the loss in training."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

_COLORS = {
    "Inception": "black",
    "BN-Baseline": "tab:red",
    "BN-x5": "tab:blue",
    "BN-x30": "tab:purple",
    "BN-x5-Sigmoid": "tab:green",
    "Inception-Sigmoid": "tab:gray",
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws accuracy (left, dotted at Inception's best) and mean loss of batches."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    runs = result["runs"]
    for name, run in runs.items():
        style = {"color": _COLORS[name], "label": name, "lw": 1.2}
        left.plot(run["step"], run["accuracy"], **style)
        right.plot(run["step"], run["train_loss"], **style)
    if "Inception" in runs:
        best = max(runs["Inception"]["accuracy"])
        left.axhline(best, color="black", linestyle=":", linewidth=1)
    left.set(xlabel="training steps", ylabel="validation accuracy", ylim=(0, 1))
    right.set(xlabel="training steps", ylabel="loss in training")
    left.set_title(result["config"]["dataset"], fontsize=10)
    left.legend(fontsize=7)
    return figure
