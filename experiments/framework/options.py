"""Checks the options of studies."""

from collections.abc import Iterable
from typing import Any


def check_at_least(config: Any, **least: float) -> None:
    """Checks lower bounds of numbers, or of every number of a tuple.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(bound <= number for number in numbers):
            raise ValueError(f"`{name}` must be at least {bound}, got {value}.")


def check_positive(config: Any, *names: str) -> None:
    """Checks that numbers are positive and finite.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 < value < float("inf"):
            raise ValueError(f"`{name}` must be positive and finite, got {value}.")


def check_among(config: Any, known: Iterable[Any], *names: str) -> None:
    """Checks that a value, or every value of a tuple that is not empty, is known.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    known = tuple(known)
    for name in names:
        value = getattr(config, name)
        chosen = value if isinstance(value, tuple) else (value,)
        if not chosen or not set(chosen) <= set(known):
            raise ValueError(f"`{name}` must be among {known}, got {value!r}.")


def check_weights(config: Any, *names: str) -> None:
    """Checks that numbers, such as the weights of averages, lie in [0, 1].

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")
