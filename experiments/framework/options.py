"""Checks the options of studies."""

from collections.abc import Callable, Iterable
from typing import Any


def check_at_least(config: Any, **least: float) -> None:
    """Checks lower bounds of numbers, or of all numbers of tuples.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if not _all(value, lambda number, bound=bound: bound <= number):
            raise ValueError(f"`{name}` must be at least {bound}, got {value}.")


def check_positive(config: Any, *names: str) -> None:
    """Checks that numbers, or all numbers of tuples, are positive and finite.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    for name in names:
        value = getattr(config, name)
        if not _all(value, lambda number: 0 < number < float("inf")):
            raise ValueError(f"`{name}` must be positive and finite, got {value}.")


def check_among(config: Any, known: Iterable[Any], *names: str) -> None:
    """Checks that a value, or every value of a tuple that is not empty, is known.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    known = tuple(known)
    for name in names:
        value = getattr(config, name)
        if not _all(value, lambda each: each in known):
            raise ValueError(f"`{name}` must be among {known}, got {value!r}.")


def check_weights(config: Any, *names: str) -> None:
    """Checks that numbers, or all numbers of tuples, lie in [0, 1], as weights do.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    for name in names:
        value = getattr(config, name)
        if not _all(value, lambda number: 0 <= number <= 1):
            raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")


def _all(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Returns whether a condition holds for a value, or for each one of a tuple.

    It does not hold for an empty tuple.
    """
    values = value if isinstance(value, tuple) else (value,)
    return bool(values) and all(map(holds, values))
