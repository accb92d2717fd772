"""The figure of the study: errors of the scale's gradient against the mean."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

_COLORS = {
    "jaxbn": "tab:blue",
    "flax fast": "tab:orange",
    "flax stable": "tab:red",
    "torch": "tab:green",
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws a panel per dtype, for the most elements and a cotangent of mean 1."""
    rows = [row for row in result["rows"] if row["mean"] == 1]
    most = max(row["elements"] for row in rows)
    rows = [row for row in rows if row["elements"] == most]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, panels = plt.subplots(
        1, len(dtypes), figsize=(10, 3.6), sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes, dtype in zip(panels[0], dtypes, strict=True):
        mine = [row for row in rows if row["dtype"] == dtype]
        for name in mine[0]["errors"]:
            axes.loglog(
                [row["ratio"] for row in mine],
                [row["errors"][name]["dscale"] for row in mine],
                "o-", color=_COLORS[name], label=name,
            )  # fmt: skip
        axes.set(title=f"{dtype}, {most:,} elements", xlabel="mean / std of a channel")
    panels[0][0].set_ylabel("error of the scale's gradient")
    panels[0][0].legend()
    return figure
