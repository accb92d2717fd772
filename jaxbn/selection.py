"""Selection of layers by path: the argument `where` of all functions that take it."""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Where = str | Sequence[str] | Callable[[str], bool] | None
"""A choice of layers by their paths, such as "encoder/block_0/norm".

It is a pattern of `fnmatch`, whose `*` also matches `/`, or a sequence of patterns. A
pattern that matches a module chooses all layers in it. It may also be a function that
returns True for the paths of the chosen layers. None chooses all layers.
"""


def as_predicate(where: Where) -> Callable[[str], bool]:
    """Returns a function that checks whether a path is chosen.

    Raises:
      TypeError: if `where` is not a `Where`.

    Example:
      >>> is_meant = as_predicate(["encoder", "*/norm"])
      >>> [is_meant(path) for path in ("encoder/bn", "head/norm", "head/bn")]
      [True, True, False]
    """
    if where is None:
        return lambda path: True
    if callable(where):
        return where
    patterns = [where] if isinstance(where, str) else where
    if not isinstance(patterns, Sequence) or not all(
        isinstance(each, str) for each in patterns
    ):
        raise TypeError(
            "`where` must be a pattern of paths, several patterns, a function of a "
            f"path, or None for all, got {where!r}."
        )
    return lambda path: any(
        path == form or fnmatch.fnmatchcase(path, form)
        for each in patterns
        for form in (each, f"{each}/*")
    )


def check_any(where: Where, meant: Iterable[str], paths: Iterable[str]) -> None:
    """Checks that `where`, and each of its patterns, matches at least one layer.

    Raises:
      ValueError: if it, or one of its patterns, matches none.
    """
    paths, meant = list(paths), list(meant)
    idle: Any = where
    if meant and not isinstance(where, str) and isinstance(where, Sequence):
        idle = [each for each in where if not any(map(as_predicate(each), meant))]
        if not idle:
            return
    elif meant:
        return
    raise ValueError(
        f"`where` must match a layer of `BatchNorm`, got {idle!r}; the layers of jaxbn "
        f"are {sorted(paths)}."
    )
