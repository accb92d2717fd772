"""The figure of the study: accuracy by dropout, by L2 and by the mini-batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.framework import curves

_COLORS = {"BN": "tab:blue", "without BN": "tab:orange"}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws the accuracy by each kind of regularisation, with BN and without."""
    about = result["options"]
    off, weight = about["dropout"][0], about["l2"]
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(10, 3.7), sharey=True, layout="constrained"
    )
    for network, color in _COLORS.items():
        mine = [row for row in result["rows"] if row["network"] == network]
        usual = [row for row in mine if row["batches"] == "reshuffled"]
        rows = [row for row in usual if row["l2"] == 0]
        _line(left, rows, color, network)
        rows = [row for row in usual if row["dropout"] == off]
        _line(middle, sorted(rows, key=lambda row: row["l2"]), color, network)
        rows = [row for row in mine if row["dropout"] == off and row["l2"] == 0]
        _line(right, rows, color, network)
    left.set_xticks(
        range(len(about["dropout"])), [f"{rate:.0%}" for rate in about["dropout"]]
    )
    left.set(xlabel="dropout", ylabel="test accuracy")
    middle.set_xticks(range(3), ["0", f"{weight / 5:g}", f"{weight:g}"])
    middle.set_xlabel("weight of L2")
    right.set_xticks(range(2), ["reshuffled", "ever the same"])
    right.set(xlabel="mini-batches", xlim=(-0.4, 1.4))
    left.legend(fontsize=8)
    figure.suptitle("What does other regularisation bring?", fontsize=10)
    return figure


def _line(
    axes: Axes, rows: Sequence[Mapping[str, Any]], color: str, label: str
) -> None:
    values = np.array([row["accuracy"] for row in rows], np.float64)
    places = np.arange(len(values))
    curves.draw(axes, places, values, "o-", color=color, label=label, markersize=4)
