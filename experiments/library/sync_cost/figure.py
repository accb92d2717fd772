"""The figure of the study: predicted cost, and the model against published steps."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws predicted cost and share of a step, and the model against known steps."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4))
    colors = {"TPU v3": "tab:blue", "GPU, nodes of 8": "tab:green"}
    groups = np.array(result["groups"][1:])
    for network, style in zip(result["milliseconds"], ("-", "--"), strict=True):
        for hardware, values in result["milliseconds"][network].items():
            added = np.array(values[1:])
            share = added / (added + result["unsynchronised"][network][hardware]["ms"])
            line = {"color": colors[hardware], "label": f"{network}, {hardware}"}
            left.loglog(groups, added, style, **line)
            middle.semilogx(groups, 100 * share, style, **line)
    for axes, title in ((left, "ms added to a step"), (middle, "% of the step")):
        axes.set(title=f"{title} (model)", xlabel="devices that share statistics")
    left.legend()
    limits = [10, 200]
    right.loglog(limits, limits, color="tab:gray", lw=1)
    labels: dict[tuple[str, int], list[str]] = {}
    for row in result["mlperf"]["runs"]:
        right.plot(
            row["steady_ms"],
            row["predicted_ms"],
            "o" if row["fitted"] else "^",
            color="tab:blue" if row["fitted"] else "tab:red",
        )
        # Points of runs with equal images per core overlap, so they share a label.
        same = labels.setdefault((row["run"], row["images_per_core"]), [])
        same.append(f"{row['cores']:,}")
    for i, row in enumerate(result["mlperf"]["runs"]):
        cores = labels.pop((row["run"], row["images_per_core"]), None)
        if cores:
            right.annotate(
                f"{row['run']}, {', '.join(cores)} cores, groups of {row['group']}",
                (row["steady_ms"], row["predicted_ms"]),
                xytext=(8, -10 if i % 2 or i == 0 else 4),
                textcoords="offset points",
                fontsize=7,
            )
    right.set_title("ResNet-50 on TPU v3, ms per step: fitted (o), predicted (^)")
    right.set(xlabel="steady (MLPerf)", ylabel="model", xlim=(10, 900))
    figure.tight_layout()
    return figure
