"""Layers of a model by path: what `where` means in every function that takes it."""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Where = str | Sequence[str] | Callable[[str], bool] | None
"""Paths of layers, such as "encoder/block_0/norm".

A pattern of `fnmatch`, of which `*` also matches `/`, or several of them; one that
names a module stands for all layers in it. Or a function of the path. None: all.
"""


def as_predicate(where: Where) -> Callable[[str], bool]:
    """Whether a path is meant.

    Raises:
      TypeError: if `where` is nothing of that kind.

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
    """Checks that `where` means some of the layers, and each of its patterns one.

    Raises:
      ValueError: if it means none.
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
