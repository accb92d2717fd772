"""What the options of every study with trainings share."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")


def quick(config: Config, settings: Mapping[str, Any]) -> Config:
    """The options with those of the small setting, where `config.quick` asks for it.

    Options that were given, that is, differ from their defaults, stay.

    Args:
      config: a dataclass of options, with a field `quick`.
      settings: of the small setting, by the name of the option.
    """
    if not config.quick:
        return config
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    untouched = {
        name: value
        for name, value in settings.items()
        if getattr(config, name) == defaults[name]
    }
    return dataclasses.replace(config, **untouched)


def identity(config: Any) -> dict[str, Any]:
    """What decides the numbers: everything but where files lie, as JSON holds it."""
    fields = dataclasses.asdict(config)
    for name in ("data_dir", "out"):
        fields.pop(name, None)
    return json.loads(json.dumps(fields))


def check_at_least(config: Any, **least: float) -> None:
    """Checks numbers, or every number of a tuple, before any work.

    Raises:
      ValueError: naming the option, what it must be and what it is.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(bound <= number for number in numbers):
            raise ValueError(f"`{name}` must be at least {bound}, got {value}.")


def check_positive(config: Any, *names: str) -> None:
    """Checks that numbers are positive and finite.

    Raises:
      ValueError: naming the option, what it must be and what it is.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 < value < float("inf"):
            raise ValueError(f"`{name}` must be positive and finite, got {value}.")


def check_among(config: Any, known: Iterable[Any], *names: str) -> None:
    """Checks that what was chosen, one thing or a tuple of one or more, is known.

    Raises:
      ValueError: naming the option, what it must be and what it is.
    """
    known = tuple(known)
    for name in names:
        value = getattr(config, name)
        chosen = value if isinstance(value, tuple) else (value,)
        if not chosen or not set(chosen) <= set(known):
            raise ValueError(f"`{name}` must be among {known}, got {value!r}.")


def check_weights(config: Any, *names: str) -> None:
    """Checks that numbers, of averages above all, lie in [0, 1].

    Raises:
      ValueError: naming the option, what it must be and what it is.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turns Ctrl-C into one line."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("Stopped. Run the same command again to resume.")
