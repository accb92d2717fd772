"""The figure of the study: loss contours, and steps by condition number."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

_COLORS = {
    "none": "tab:red",
    "min-max": "tab:orange",
    "z-score": "tab:green",
    "BN first": "tab:blue",
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws four losses with thirty steps each, and all tables and scalings (right)."""
    figure, panels = plt.subplots(
        1, 5, figsize=(13, 3.2), width_ratios=(2, 2, 2, 2, 3), layout="constrained"
    )
    first, second = result["contours"]["features"]
    for axes, (name, color) in zip(panels, _COLORS.items(), strict=False):
        found = result["contours"]["loss"][name]
        hessian, optimum, path = (
            np.array(found[part]) for part in ("hessian", "optimum", "path")
        )
        reach = 1.5 * np.linalg.norm(optimum)
        along = np.linspace(-reach, reach, 200)
        offsets = np.stack(np.meshgrid(along, along), -1)
        losses = np.einsum("abi,ij,abj->ab", offsets, hessian, offsets)
        axes.contour(
            optimum[0] + along, optimum[1] + along, losses,
            levels=losses.max() * np.linspace(0.01, 1, 12) ** 2,
            colors="tab:gray", linewidths=0.6,
        )  # fmt: skip
        axes.plot(*path.T, ".-", color=color, markersize=4, lw=1)
        axes.plot(*optimum, "k*")
        axes.set_aspect("equal")
        axes.set_title(f"{name}: 30 steps", fontsize=9)
        axes.set_xlabel(f"weight of {first}", fontsize=8)
        axes.tick_params(labelsize=6)
    panels[0].set_ylabel(f"weight of {second}", fontsize=8)

    last = panels[-1]
    for name, color in _COLORS.items():
        rows = [row for row in result["rows"] if row["scaling"] == name]
        last.loglog(
            [row["condition"] for row in rows], [row["steps"] for row in rows],
            "x" if name == "BN first" else "o", color=color, label=name, markersize=6,
        )  # fmt: skip
    last.set_title("steps against condition number", fontsize=9)
    last.set_xlabel("condition number of the Hessian", fontsize=8)
    last.set_ylabel("steps", fontsize=8)
    last.legend(fontsize=7)
    return figure
