"""Timing side by side: programs take turns, and only ratios of one round count.

The order changes from round to round: a program pays for what the one before it left in
caches and threads.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Ratio(NamedTuple):
    """Of the time of one program to that of another."""

    median: float
    low: float  # Quartiles over the rounds.
    high: float


def seconds(
    programs: Mapping[str, Callable[[], Any]], rounds: int, at_least: float = 2e-3
) -> dict[str, list[float]]:
    """Seconds per call of each program in each round.

    Args:
      programs: each returns when its work is done.
      rounds: every program runs once per round, after one that does not count.
      at_least: seconds per program and round: short ones are called repeatedly.
    """
    repeats = {}
    for name, program in programs.items():
        program()  # Compiles.
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
    """Median and quartiles of the ratios of the rounds."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(*(round(value, 3) for value in (median, low, high)))


def geometric_mean(values: list[float]) -> float:
    """The mean of ratios."""
    return math.exp(statistics.fmean(map(math.log, values)))
