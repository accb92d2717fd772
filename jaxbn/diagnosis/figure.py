"""A figure that shows which layers' running statistics are off, and by how much."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxbn import optional
from jaxbn.diagnosis.measure import MEAN_LIMIT, VARIANCE_LIMIT, LayerDiagnosis

_OFF, _RIGHT = "tab:red", "tab:blue"


def draw(layers: Sequence[LayerDiagnosis]) -> Any:
    """Draws a panel for the mean and one for the variance, with a line per layer.

    Raises:
      ModuleNotFoundError: if matplotlib is not installed.
    """
    # `pyplot` would choose a window system and keep the figure.
    library = optional.imported("matplotlib.figure", "A figure of the diagnosis")
    figure = library.Figure(
        figsize=(10, 1.6 + 0.28 * len(layers)), layout="constrained"
    )
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, layers, lambda row: row.mean_distances, (-np.inf, MEAN_LIMIT))
    left.set(xlabel="running standard deviations", title="mean is off by")
    left.set_xlim(0, max(1.2 * MEAN_LIMIT, left.get_xlim()[1]))
    limits = (1 / VARIANCE_LIMIT, VARIANCE_LIMIT)
    _panel(right, layers, lambda row: row.variance_ratios, limits)
    right.set(
        xlabel="variance of the batch / running variance",
        title="variance is off by a factor of",
    )
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}")
    low, high = right.get_xlim()
    right.set_xlim(min(low, 0.5), max(high, 2))
    left.set_yticks(range(len(layers)), [row.label for row in layers])
    left.set_ylim(len(layers) - 0.5, -0.5)  # The first layer is at the top.
    off = sum(map(_is_off, layers))
    figure.suptitle(
        f"Running statistics are off in {off} of {len(layers)} layers (red): a channel "
        "beyond a dashed line; dots are medians of the channels",
        fontsize=10,
    )
    return figure


def _panel(
    axes: Any,
    layers: Sequence[LayerDiagnosis],
    values: Callable[[LayerDiagnosis], np.ndarray],
    limits: tuple[float, float],
) -> None:
    """Draws a line per layer from its best to its worst channel.

    The median is a dot. A layer with a channel beyond a limit is red.
    """
    for place, row in enumerate(layers):
        seen = values(row)[np.isfinite(values(row))]
        if not seen.size:
            continue
        beyond = np.min(seen) < limits[0] or np.max(seen) > limits[1]
        color = _OFF if beyond else _RIGHT
        axes.plot([np.min(seen), np.max(seen)], [place, place], "|-", color=color)
        axes.plot(np.median(seen), place, "o", color=color)
    for limit in filter(np.isfinite, limits):
        axes.axvline(limit, color="tab:gray", linestyle="--", linewidth=1)
    axes.grid(axis="y", alpha=0.3)


def _is_off(row: LayerDiagnosis) -> bool:
    return row.mean_distance > MEAN_LIMIT or row.variance_ratio > VARIANCE_LIMIT
