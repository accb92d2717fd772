"""Finds the step at which a curve of accuracy reaches the best of another.

A run is the entry of one configuration in a JSON: `step`, `[records]`, and `accuracy`,
`[records][seeds]`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Run = Mapping[str, Any]


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
