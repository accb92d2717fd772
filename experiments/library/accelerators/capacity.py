"""Finds the largest batch that fits one device, by compiling around the limit."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.compilers import cases, targets

STEP = {"tpu": 64, "gpu": 128}  # The step of the search, in images.
FIRST = {"tpu": (256, 448), "gpu": (1024, 2048)}
MOST = 9  # The most compilations of a search.

_NUMBER = re.compile(r"([\d.]+)G")


class Point(NamedTuple):
    """The memory that a batch needs."""

    fits: bool
    bytes: float | None  # None: the compiler does not report it.


def search(
    case: cases.Case, compile_case: Callable[[cases.Case], dict[str, Any]]
) -> dict[int, Point]:
    """Compiles a few batch sizes until one fits and the next does not.

    Args:
      case: a training step; its `images` are not used.
      compile_case: returns the row of a case.

    Returns:
      The memory that each batch size needs.
    """
    points: dict[int, Point] = {}
    limit = targets.MEMORY[case.target]
    waiting = list(FIRST[case.platform])
    while waiting and len(points) < MOST:
        images = waiting.pop(0)
        row = compile_case(dataclasses.replace(case, images=images))
        point = read(row, limit)
        if point is None:
            break
        points[images] = point
        if not waiting:
            following = next_size(points, limit, STEP[case.platform])
            waiting = [] if following is None else [following]
    return points


def read(row: Mapping[str, Any], limit: float) -> Point | None:
    """Returns the memory that a program needs, or None if that is not known.

    The TPU compiler refuses a program that does not fit. On a GPU the bytes are
    compared with `limit`.
    """
    if "error" in row:
        if "RESOURCE_EXHAUSTED" not in row["error"]:
            return None
        needed = _NUMBER.search(row["error"])
        return Point(False, float(needed[1]) * 2**30 if needed else None)
    used = 1e6 * total_megabytes(row)
    return Point(row["platform"] == "tpu" or used <= limit, used)


def total_megabytes(row: Mapping[str, Any]) -> float:
    """Returns the memory of a running program in MB.

    Arrays that are updated in place count once.
    """
    # `sum` rounds differently from Python 3.12 on.
    total = row["temporary_MB"] + row["argument_MB"] + row["output_MB"]
    return total - row["aliased_MB"]


def bounds(points: Mapping[int, Point]) -> tuple[int, int | None]:
    """Returns the largest size that fits and the smallest larger one that does not.

    The first is 0 if none fits, and the second is None if all larger ones fit.
    """
    low = max((n for n, point in points.items() if point.fits), default=0)
    high = min((n for n, p in points.items() if not p.fits and n > low), default=None)
    return low, high


def next_size(points: Mapping[int, Point], limit: float, step: int) -> int | None:
    """Returns the size to compile next, or None if the largest that fits is known.

    Every second call interpolates linearly between two sizes. The others go one step up
    or half-way, because memory is not linear near the limit: there a compiler begins to
    recompute values to save memory.
    """
    low, high = bounds(points)
    if high is not None and high - low <= step:
        return None
    guess = low + step if high is None else (low + high) // 2
    ends = sorted(points)[-2:] if high is None else [low, high]
    (a, at_a), (b, at_b) = ((n, points[n].bytes if n else 0.0) for n in ends)
    if at_a is not None and at_b is not None and at_a < at_b and len(points) % 2 == 0:
        guess = int(a + (limit - at_a) * (b - a) / (at_b - at_a))
    most = 2 * low if high is None else high - step
    return min(max(guess // step * step, low + step), max(most, step))


def largest(points: Mapping[int, Point], step: int) -> str:
    """Returns the largest batch that fits, or the range in which it lies."""
    low, high = bounds(points)
    if high is None:
        return f"at least {low}"
    return str(low) if high - low <= step else f"{low} to {high - step}"
