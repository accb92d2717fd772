"""The curve of several seeds, as all figures draw it."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes


def draw(axes: Axes, x: Any, seeds: Any, style: str = "-", **line: Any) -> None:
    """Their mean as a line, their range as a band around it.

    Args:
      axes: to draw into.
      x: `[points]`.
      seeds: `[points, seeds]`; where one is None or NaN there is a gap.
      style: of the line.
      **line: its other properties, the `color` among them.
    """
    values = np.array(seeds, np.float64)
    axes.plot(x, values.mean(1), style, **line)
    axes.fill_between(
        x, values.min(1), values.max(1), color=line["color"], alpha=0.2, lw=0
    )
