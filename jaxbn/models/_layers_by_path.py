"""The `BatchNorm` layers of a whole model, by their paths; the argument `where`.

`is_ours` tells whether a layer is jaxbn's or Flax's. A comparison with the names
`flax.linen.BatchNorm` and `flax.nnx.BatchNorm` does not, because `patch_flax` may have
assigned jaxbn's classes to them. jaxbn's classes are subclasses of Flax's, so check for
jaxbn's first.
"""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
from flax import nnx

from jaxbn import linen
from jaxbn import nnx as jaxbn_nnx

Path = tuple[str, ...]
Kinds = tuple[type, ...]
Where = str | Sequence[str] | Callable[[str], bool] | None
"""A choice of layers by their paths, such as "encoder/block_0/norm".

It is a pattern of `fnmatch`, whose `*` also matches `/`, or a sequence of patterns. A
pattern that matches a module chooses all layers in it. It may also be a function that
returns True for the paths of the chosen layers. None chooses all layers.
"""


def _flax_classes(root: type, module: str) -> Kinds:
    """Returns the classes named `BatchNorm` that a module of Flax has defined.

    The name in the module may be bound to another class, by `patch_flax`.
    """
    return tuple(
        kind
        for kind in root.__subclasses__()
        if (kind.__module__, kind.__name__) == (module, "BatchNorm")
    )


FLAX_LINEN = _flax_classes(nn.Module, "flax.linen.normalization")
FLAX_NNX = _flax_classes(nnx.Module, "flax.nnx.nn.normalization")
LINEN: Kinds = (linen.BatchNorm, *FLAX_LINEN)
NNX: Kinds = (jaxbn_nnx.BatchNorm, *FLAX_NNX)


def is_ours(layer: Any) -> bool:
    """Returns whether an object is a layer of jaxbn, of Linen or NNX.

    Example:
      >>> is_ours(linen.BatchNorm()), is_ours(FLAX_LINEN[0]())
      (True, False)
    """
    return isinstance(layer, (linen.BatchNorm, jaxbn_nnx.BatchNorm))


def is_flax(layer: Any) -> bool:
    """Returns whether an object is a layer of Flax, of Linen or NNX, and not jaxbn's.

    Example:
      >>> is_flax(linen.BatchNorm()), is_flax(FLAX_LINEN[0]())
      (False, True)
    """
    return isinstance(layer, (*FLAX_LINEN, *FLAX_NNX)) and not is_ours(layer)


def base_class(layer: Any) -> type[Any]:
    """Returns the class of jaxbn or Flax that a layer is an instance of."""
    return next(kind for kind in (*LINEN, *NNX) if isinstance(layer, kind))


def check_variables(model: nn.Module | nnx.Module, variables: Any) -> None:
    """Checks that variables are given with a Linen model, but not with an NNX model.

    Raises:
      ValueError: if they are missing, or given with an NNX model.
    """
    if (variables is None) != isinstance(model, nnx.Module):
        raise ValueError(
            "`variables` must be all that `model.apply` takes, and None for an NNX "
            "model."
        )


def nnx_layers(model: nnx.Module, kinds: Kinds = NNX) -> dict[Path, Any]:
    """Returns the layers of an NNX model by path; a shared layer occurs once.

    Example:
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), NNX[0](3, rngs=rngs))
      >>> list(nnx_layers(model))
      [('layers', '1')]
    """
    return {
        tuple(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, kinds)
    }


def check_collectable(model: nnx.Module) -> None:
    """Checks that no layer of an NNX model is Flax's, which cannot collect moments.

    Raises:
      ValueError: with the paths of Flax's layers.
    """
    layers = nnx_layers(model).items()
    theirs = sorted("/".join(path) for path, layer in layers if is_flax(layer))
    if theirs:
        raise ValueError(
            f"The moments of {theirs} could not be collected: layers must be those of "
            "`jaxbn.nnx`."
        )


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
