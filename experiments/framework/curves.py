"""Draws and summarises the curves of trainings.

A run is the entry of one configuration in a JSON: `step`, `[records]`, and `accuracy`,
`[records][seeds]`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

Run = Mapping[str, Any]


def draw(axes: Axes, x: Any, seeds: Any, style: str = "-", **line: Any) -> None:
    """Draws the mean of seeds as a line, and their range as a band around it.

    Args:
      axes: the axes to draw into.
      x: the horizontal positions of the points, `[points]`.
      seeds: the values, `[points, seeds]`; there is a gap where one is None or NaN.
      style: the style of the line.
      **line: other properties of the line; `color` is required.
    """
    values = np.array(seeds, np.float64)
    axes.plot(x, values.mean(1), style, **line)
    axes.fill_between(
        x, values.min(1), values.max(1), color=line["color"], alpha=0.2, lw=0
    )


def quarters(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns means over the first and over the last quarter of the records.

    At a constant learning rate the accuracies of two consecutive records can differ by
    points, so the last one alone is not reliable.

    Args:
      records: the values of the records, `[records, ...]`.

    Returns:
      Two arrays `[...]`.

    Example:
      >>> quarters(np.array([1, 3, 0, 0, 0, 0, 5, 6]))
      (np.float64(2.0), np.float64(5.5))
    """
    count = max(1, len(records) // 4)
    return records[:count].mean(0), records[-count:].mean(0)


def mean(run: Run) -> np.ndarray:
    """Returns the mean accuracy over the seeds, `[records]`."""
    return np.mean(run["accuracy"], 1)


def best(run: Run) -> float:
    """Returns the highest mean accuracy."""
    return float(mean(run).max())


def first(steps: Sequence[int], accuracy: np.ndarray, target: float) -> int | None:
    """Returns the first step with an accuracy of at least `target`, or None.

    Example:
      >>> first([10, 20, 30], np.array([0.5, 0.8, 0.7]), 0.7)
      20
    """
    reached = np.flatnonzero(accuracy >= target)
    return int(steps[reached[0]]) if len(reached) else None


def steps_to(run: Run, target: float) -> int | None:
    """Returns the first recorded step with a mean accuracy of at least `target`."""
    return first(run["step"], mean(run), target)


def steps_of_seeds(run: Run, target: float) -> list[int | None]:
    """Returns for each seed the first step with an accuracy of at least `target`."""
    return [first(run["step"], each, target) for each in np.array(run["accuracy"]).T]


def times_fewer(run: Run, baseline: Run) -> float | None:
    """Returns how many times fewer steps than `baseline` a run takes.

    Both are steps to the best mean accuracy of `baseline`. The result is None if `run`
    does not reach it.
    """
    target = best(baseline)
    steps, longer = steps_to(run, target), steps_to(baseline, target)
    return None if steps is None or longer is None else longer / steps
