"""Replaces `BatchNorm` layers: those of an NNX model, or the classes of Flax."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn import estimators, linen
from jaxbn._layers import call
from jaxbn.models import _layers_by_path
from jaxbn.models._layers_by_path import Where
from jaxbn.nnx import BatchNorm

# For each layer of jaxbn, the module of Flax in which it can replace Flax's layer.
_PLACES: dict[type, Any] = {linen.BatchNorm: nn, BatchNorm: nnx}
# A class that `patch_flax` makes keeps its defaults under this name.
_DEFAULTS = "_jaxbn_defaults"


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
        one.
      where: the layers to replace; as in `jaxbn.freeze`.
      **options: options of `jaxbn.nnx.BatchNorm`, instead of `make`. The new layer has
        the variables and the attributes of the old one, and these options. With another
        estimator its statistics count as established, and the next batch is averaged
        with them.

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
                "give `make` for other layers."
            )
    is_meant = _layers_by_path.as_predicate(where)
    paths: list[str] = []
    meant: list[str] = []

    def replaced(keys: tuple[Any, ...], node: Any) -> Any:
        if not isinstance(node, _layers_by_path.NNX):
            return node
        path = "/".join(map(str, keys))
        paths.append(path)
        if not is_meant(path):
            return node
        meant.append(path)
        return make(path, node) if make is not None else _with_options(node, options)

    new = nnx.recursive_map(replaced, nnx.clone(model))
    _layers_by_path.check_any(where, meant, paths)
    return new


def _with_options(norm: Any, options: dict[str, Any]) -> BatchNorm:
    """Returns a layer of jaxbn with the attributes and the variables of another."""
    if type(norm) not in _layers_by_path.NNX and not _is_patched(type(norm)):
        raise TypeError(
            f"`{type(norm).__name__}` is a class of its own, whose options cannot be "
            "set; give `make`."
        )
    names = set(inspect.signature(BatchNorm.__init__).parameters) - {"rngs", "self"}
    names -= set(estimators.ignored_options(options.get("estimator", "ema")))
    given = {name: getattr(norm, name) for name in names if hasattr(norm, name)}
    new = BatchNorm(**{**given, **options}, rngs=nnx.Rngs(0))
    begun = _begun(norm, new)
    for name, value in begun.items():
        getattr(new, name).set_value(value)
    for name in set(vars(norm)) - set(begun):
        variable = isinstance(getattr(new, name, None), nnx.Variable)
        if variable and getattr(norm, name) is not None:
            setattr(new, name, getattr(norm, name))
    if isinstance(norm, BatchNorm):
        new.frozen = norm.frozen
    return new


def _begun(norm: Any, new: BatchNorm) -> dict[str, Any]:
    """Returns the first values of the variables that cannot be those of the old layer.

    Another estimator, policy or variant cannot use the state of the old one. A state
    has the shape of the statistics, because `nnx.vmap` may have stacked the layers.
    """
    mean = norm.mean[...]
    begun: dict[str, Any] = {}
    if not _same_state(norm, new):
        begun |= call.estimator(new).init(mean.shape, mean.dtype).extra
    if (getattr(norm, "variant", None), getattr(norm, "sync", None)) != (
        new.variant,
        new.sync,
    ):
        stack = mean.shape[: mean.ndim - new.mean[...].ndim]
        for name in ("batch_sync", "own_batch_sync", *new.batch_stats.variant):
            if hasattr(new, name):
                value = getattr(new, name).get_value()
                begun[name] = jax.tree.map(
                    lambda leaf: jnp.broadcast_to(leaf, (*stack, *leaf.shape)), value
                )
    return begun


def _same_state(old: Any, new: BatchNorm) -> bool:
    """Returns whether the estimators of both layers have the same kind of state."""
    if not isinstance(old, BatchNorm):
        return False
    one, other = call.estimator(old), call.estimator(new)
    # The number of batches in a window is part of the shape of its state.
    sizes = [getattr(each, "batches", None) for each in (one, other)]
    return type(one) is type(other) and sizes[0] == sizes[1]


def patch_flax(**defaults: Any) -> "Patch":
    """Replaces `flax.linen.BatchNorm` and `flax.nnx.BatchNorm` by jaxbn's layers.

    After this call `nn.BatchNorm` and `nnx.BatchNorm` are classes of jaxbn, so a model
    that is written for Flax uses them. The patch lasts until `undo()` of the result, or
    until the end of a `with` block. Layers and models that were made under the patch
    stay as they are after it.

    Patch before you import the code of others. `from flax.linen import BatchNorm` and
    `norm: Any = nn.BatchNorm`, the default of a field, store the class that is there
    when this line runs. Code that was imported earlier keeps Flax's class until you
    import it anew with `importlib.reload`.

    Args:
      **defaults: options for layers that are made without them, such as
        `unbiased=False`. An option that only one of the two layers has applies to that
        layer alone. With defaults the classes are subclasses of jaxbn's, whose layers
        can be copied but not pickled. If `estimator` is among them, these layers ignore
        a `momentum` that the estimator does not use.

    Returns:
      The patch: a context manager, with `undo()`.

    Raises:
      TypeError: if neither layer has an option of this name.

    Example:
      >>> patch = patch_flax(momentum=0.9)
      >>> norm = functools.partial(nn.BatchNorm, use_running_average=False)
      >>> patch.undo()
      >>> norm().momentum, norm(momentum=0.5).momentum
      (0.9, 0.5)
    """
    options = {base: _options(base) for base in _PLACES}
    known = set().union(*options.values())
    if unknown := sorted(set(defaults) - known):
        raise TypeError(
            f"`patch_flax` takes options of the layers {sorted(known)}, got {unknown}."
        )
    return Patch(
        {
            base: _with_defaults(
                base, {name: defaults[name] for name in defaults if name in names}
            )
            for base, names in options.items()
        }
    )


class Patch:
    """A patch of Flax's layers, which lasts until it is undone.

    Args:
      kinds: the class that replaces Flax's, for each layer of jaxbn.
    """

    def __init__(self, kinds: dict[type, type]):
        self._before = {base: place.BatchNorm for base, place in _PLACES.items()}
        _put(kinds)

    def undo(self) -> None:
        """Restores the classes that this patch replaced.

        Undo several patches in the reverse order, as nested `with` statements do.
        """
        _put(self._before)

    def __enter__(self) -> "Patch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del kind, error, traceback
        self.undo()


def _is_patched(kind: type) -> bool:
    """Returns whether `patch_flax` made this class; False for a subclass of it."""
    return _DEFAULTS in vars(kind)


def _put(kinds: dict[type, type]) -> None:
    for base, kind in kinds.items():
        _PLACES[base].BatchNorm = kind


def _with_defaults(base: Any, defaults: dict[str, Any]) -> type:
    """Returns a subclass of a layer with other defaults; without any, the layer."""
    if not defaults:
        return base
    metaclass: Any = type(base)
    members: dict[str, Any] = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        _DEFAULTS: defaults,
    }
    if base is linen.BatchNorm:
        fields = {field.name: field for field in dataclasses.fields(base)}
        members["__annotations__"] = {name: fields[name].type for name in defaults}
        for name, value in defaults.items():
            # A layer hashes its fields.
            value = tuple(map(tuple, value)) if name == "axis_index_groups" else value
            value = tuple(value) if isinstance(value, list) else value
            kw_only: Any = fields[name].kw_only
            members[name] = dataclasses.field(default=value, kw_only=kw_only)

        def post_init(self: Any) -> None:
            for name in estimators.ignored_options(self.estimator):
                object.__setattr__(self, name, fields[name].default)
            base.__post_init__(self)

        return metaclass(
            base.__name__, (base,), {**members, "__post_init__": post_init}
        )

    @functools.wraps(base.__init__)
    def init(self: Any, *args: Any, **given: Any) -> None:
        options = {**defaults, **given}
        for name in estimators.ignored_options(options.get("estimator", "ema")):
            options.pop(name, None)
        base.__init__(self, *args, **options)

    return metaclass(base.__name__, (base,), {**members, "__init__": init})


def _options(base: Any) -> set[str]:
    """Returns the names of the options that a default can be given for."""
    names = set(inspect.signature(base.__init__).parameters)
    return names - {"self", "num_features", "rngs", "parent", "name"}
