"""Layers of a model by path: what `where` means in every function that takes it."""

import fnmatch
from collections.abc import Callable, Iterable, Sequence

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
        fnmatch.fnmatchcase(path, form)
        for each in patterns
        for form in (each, f"{each}/*")
    )


def check_any(where: Where, meant: Iterable[str], paths: Iterable[str]) -> None:
    """Checks that `where` means some of the layers that there are.

    Raises:
      ValueError: if it means none.
    """
    if not list(meant):
        raise ValueError(
            f"`where` must match a layer of `BatchNorm`, got {where!r}; the layers of "
            f"jaxbn are {sorted(paths)}."
        )
