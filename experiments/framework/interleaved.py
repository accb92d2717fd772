"""Times programs that take turns, so that times of the same round can be compared.

The order changes from round to round, because the program that ran before affects the
caches and threads.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Ratio(NamedTuple):
    """The ratio of the time of one program to that of another."""

    median: float
    low: float  # The lower quartile over the rounds.
    high: float  # The upper quartile.


def seconds(
    programs: Mapping[str, Callable[[], Any]], rounds: int, at_least: float = 2e-3
) -> dict[str, list[float]]:
    """Returns the seconds per call of each program in each round.

    Args:
      programs: functions that return when their work is done.
      rounds: the number of rounds, after a first one that does not count.
      at_least: the seconds per program and round; a shorter program is called
        repeatedly.
    """
    repeats = {}
    for name, program in programs.items():
        program()  # The first call compiles.
        start = time.perf_counter()
        program()
        elapsed = time.perf_counter() - start
        repeats[name] = max(1, math.ceil(at_least / max(elapsed, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in programs}
    order, rng = list(programs.items()), random.Random(0)
    for _ in range(rounds + 1):
        rng.shuffle(order)
        for name, program in order:
            start = time.perf_counter()
            for _ in range(repeats[name]):
                program()
            taken[name].append((time.perf_counter() - start) / repeats[name])
    return {name: values[1:] for name, values in taken.items()}


def ratio(numerator: list[float], denominator: list[float]) -> Ratio:
    """Returns median and quartiles of the ratios of the rounds."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(*(round(value, 3) for value in (median, low, high)))


def geometric_mean(values: list[float]) -> float:
    """Returns the geometric mean, the mean of ratios."""
    return math.exp(statistics.fmean(map(math.log, values)))
