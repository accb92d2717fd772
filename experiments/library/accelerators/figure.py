"""The figure of the study: the cost of a training step relative to Flax."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.compilers import targets
from experiments.library.accelerators import compare

PROGRAM = "resnet50"
COLORS = {
    "none": "tab:gray",
    "jaxbn": "tab:blue",
    "flax": "tab:orange",
    "flax stable": "tab:red",
}
_LABELS = {"none": "scale and bias only", "flax": "flax, fast variance",
           "flax stable": "flax, stable variance"}  # fmt: skip
_TITLES = {
    "float32": "float32 parameters, layers that compute in bfloat16",
    "cast": "parameters cast to bfloat16",
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws bars of the normalisations for each accelerator that has results.

    Args:
      result: the content of the JSON.
    """
    rows = [
        row
        for row in result["rows"]
        if row["style"] == "one" and not row["images"]
        and (row["program"], row["dtype"]) == (PROGRAM, "bfloat16")
        and row["activation"] == "relu"
    ]  # fmt: skip
    figure, panels = plt.subplots(1, 2, figsize=(12, 3.8), sharey=True)
    for axes, (parameters, title) in zip(panels, _TITLES.items(), strict=True):
        _bars(axes, [row for row in rows if row["parameters"] == parameters])
        axes.set_title(title, fontsize=10)
    panels[0].set_ylabel("cost over Flax's")
    panels[0].legend(ncols=4, fontsize=7, loc="upper center")
    figure.suptitle(
        "ResNet-50, bfloat16, training step over that with Flax's fast form "
        "(compiled, not run)",
        fontsize=11,
    )
    figure.tight_layout()
    return figure


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    shown_targets = {row["target"] for row in rows if compare.over_flax(rows, row)}
    places = [target for target in targets.NAMES if target in shown_targets]
    for offset, (norm, color) in enumerate(COLORS.items()):
        heights = {
            row["target"]: compare.over_flax(rows, row)
            for row in rows
            if row["norm"] == norm
        }
        shown = [(i, heights[t]) for i, t in enumerate(places) if heights.get(t)]
        bars = axes.bar(
            [place + 0.2 * (offset - 1.5) for place, _ in shown],
            [height for _, height in shown],
            width=0.19, color=color, label=_LABELS.get(norm, norm),
        )  # fmt: skip
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.axhline(1, color="black", lw=0.8)
    axes.set_xticks(range(len(places)), [_tick(target) for target in places])
    axes.margins(y=0.25)  # This leaves room for the legend.


def _tick(target: str) -> str:
    measure = "traffic" if target == "h200" else "estimated cycles"
    return f"{targets.NAMES[target]}\n{measure}"
