"""Draws the curve of several seeds, in the style of all figures."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes


def draw(axes: Axes, x: Any, seeds: Any, style: str = "-", **line: Any) -> None:
    """Draws the mean of seeds as a line, and their range as a band around it.

    Args:
      axes: the axes to draw into.
      x: the places of the points, `[points]`.
      seeds: the values, `[points, seeds]`; there is a gap where one is None or NaN.
      style: the style of the line.
      **line: other properties of the line; `color` is required.
    """
    values = np.array(seeds, np.float64)
    axes.plot(x, values.mean(1), style, **line)
    axes.fill_between(
        x, values.min(1), values.max(1), color=line["color"], alpha=0.2, lw=0
    )
