"""The figure of the study: accuracy against the batch size."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.framework import curves

_NETWORKS = {
    ("BN", "running"): ("Batch Norm", "tab:blue"),
    ("GN", "running"): ("Group Norm", "tab:green"),
    ("LN", "running"): ("Layer Norm", "tab:orange"),
}
_STATISTICS = {
    ("BN", "running"): ("running averages", "tab:blue"),
    ("BN", "population"): ("whole training set", "black"),
    ("BN", "batch"): ("the test batch itself", "tab:gray"),
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws three normalisations (left), and BN by the statistics of inference."""
    sizes = sorted(map(int, result["sizes"]))
    figure, panels = plt.subplots(
        1, 2, figsize=(10, 3.8), sharey=True, layout="constrained"
    )
    for axes, lines, title in zip(
        panels,
        (_NETWORKS, _STATISTICS),
        ("Which batch size is best?", "Batch Norm, by the statistics of inference"),
        strict=True,
    ):
        axes.axvspan(
            8, 32, color="tab:gray", alpha=0.12, lw=0, label="advised: 8 to 32"
        )
        for (network, how), (label, color) in lines.items():
            rows = np.array(
                [result["sizes"][str(size)][network][how][-1] for size in sizes]
            )
            curves.draw(axes, sizes, rows, "o-", color=color, label=label, markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("batch size; learning rate in proportion")
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8)
    panels[0].set_ylabel("test accuracy")
    return figure
