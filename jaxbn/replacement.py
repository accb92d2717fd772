"""Replacement of the normalisation layers of an NNX model."""

import inspect
from collections.abc import Callable
from typing import Any

from flax import nnx

from jaxbn import layer, model_layers, patching, selection
from jaxbn.nnx import BatchNorm
from jaxbn.selection import Where


def replace(
    model: nnx.Module,
    make: Callable[[str, Any], Any] | None = None,
    where: Where = None,
    **options: Any,
) -> nnx.Module:
    """Returns a copy of an NNX model with other layers instead of its `BatchNorm`.

    It replaces layers of jaxbn and of Flax. A layer that is used in several places is
    replaced by one new layer in all of them.

    A Linen model makes its layers while it runs. There the class of the layers is a
    field of the model, `norm: Callable = jaxbn.linen.BatchNorm`, and
    `functools.partial` sets options.

    Args:
      model: the model, which is not changed.
      make: a function of the path and the layer. It returns the new layer, for instance
        `lambda path, norm: nnx.GroupNorm(norm.num_features, rngs=rngs)`, or the old
        one. `jaxbn.folding.as_affine` is such a function.
      where: the layers to replace; see `jaxbn.selection.Where`.
      **options: options of `jaxbn.nnx.BatchNorm`, instead of `make`. The new layer has
        the variables and the attributes of the old one, and these options. With another
        estimator its statistics count as established, and the next batch moves them.

    Returns:
      The new model; its variables are copies.

    Raises:
      ValueError: if `where` matches no layer, if both `make` and options are given, or
        if an option is fixed by the variables.
      TypeError: if `BatchNorm` has no such option, if a layer is of a subclass, or if
        `model` is not an NNX model.

    Example:
      >>> model = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
      >>> model = replace(model, momentum=0.9)
      >>> type(model.layers[0]).__module__, model.layers[0].momentum
      ('jaxbn.nnx', 0.9)
    """
    if make is not None and options:
        raise ValueError(
            f"`make` and options of `BatchNorm` exclude each other, got {make!r} and "
            f"{sorted(options)}."
        )
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"`model` must be an NNX model, got {type(model).__name__}; a Linen model "
            "takes its layers as a field."
        )
    for name in ("num_features", "param_dtype"):
        if name in options:
            raise ValueError(
                f"`{name}` must stay, because the variables do, got {options[name]!r}; "
                "give `make` for a layer with others."
            )
    is_meant = selection.as_predicate(where)
    paths: list[str] = []
    meant: list[str] = []

    def replaced(keys: tuple[Any, ...], node: Any) -> Any:
        if not isinstance(node, model_layers.NNX):
            return node
        path = "/".join(map(str, keys))
        paths.append(path)
        if not is_meant(path):
            return node
        meant.append(path)
        return make(path, node) if make is not None else _with_options(node, options)

    new = nnx.recursive_map(replaced, nnx.clone(model))
    selection.check_any(where, meant, paths)
    return new


def _with_options(norm: Any, options: dict[str, Any]) -> BatchNorm:
    """Returns a layer of jaxbn with the attributes and the variables of another."""
    if type(norm) not in model_layers.NNX and not patching.is_made(type(norm)):
        raise TypeError(
            f"`{type(norm).__name__}` is a class of its own, whose options cannot be "
            "set; give `make`."
        )
    names = set(inspect.signature(BatchNorm.__init__).parameters) - {"rngs", "self"}
    given = {name: getattr(norm, name) for name in names if hasattr(norm, name)}
    new = BatchNorm(**{**given, **options}, rngs=nnx.Rngs(0))
    same = _same_state(norm, new)
    # Another estimator cannot use the rest of the old state, so it begins anew. It has
    # the shape of the statistics, because `nnx.vmap` may have stacked the layers.
    mean = norm.mean[...]
    first = layer.estimator(new).init(mean.shape, mean.dtype)
    begun = () if same else set(first._fields) - {"mean", "var"}
    for name in begun:
        getattr(new, name).set_value(getattr(first, name))
    for name, value in vars(norm).items():
        variable = isinstance(getattr(new, name, None), nnx.Variable)
        if variable and value is not None and name not in begun:
            setattr(new, name, value)
    if isinstance(norm, BatchNorm):
        new.frozen = norm.frozen
    return new


def _same_state(old: Any, new: BatchNorm) -> bool:
    """Returns whether both layers follow the batches by the same kind of state."""
    if not isinstance(old, BatchNorm):
        return False
    one, other = layer.estimator(old), layer.estimator(new)
    # The number of batches in a window is part of the shape of its state.
    sizes = [getattr(each, "batches", None) for each in (one, other)]
    return type(one) is type(other) and sizes[0] == sizes[1]
