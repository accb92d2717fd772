"""Where a curve of accuracy reaches the best of another.

A run is what the JSON holds of one configuration: `step`, `[records]`, and `accuracy`,
`[records][seeds]`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Run = Mapping[str, Any]


def mean(run: Run) -> np.ndarray:
    """Accuracy over the seeds, `[records]`."""
    return np.mean(run["accuracy"], 1)


def best(run: Run) -> float:
    """The highest mean accuracy."""
    return float(mean(run).max())


def first(steps: Sequence[int], accuracy: np.ndarray, target: float) -> int | None:
    """The first step at which an accuracy is at least `target`, None if there is none.

    Example:
      >>> first([10, 20, 30], np.array([0.5, 0.8, 0.7]), 0.7)
      20
    """
    reached = np.flatnonzero(accuracy >= target)
    return int(steps[reached[0]]) if len(reached) else None


def steps_to(run: Run, target: float) -> int | None:
    """The first recorded step at which the mean accuracy is at least `target`."""
    return first(run["step"], mean(run), target)


def steps_of_seeds(run: Run, target: float) -> list[int | None]:
    """The same of each seed alone."""
    return [first(run["step"], each, target) for each in np.array(run["accuracy"]).T]


def times_fewer(run: Run, baseline: Run) -> float | None:
    """Steps of `baseline` to its best mean accuracy, over those of `run` to it."""
    target = best(baseline)
    steps, longer = steps_to(run, target), steps_to(baseline, target)
    return None if steps is None or longer is None else longer / steps
