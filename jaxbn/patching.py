"""Replacement of Flax's layers by jaxbn's, for models that others have written.

>>> with patch_flax(unbiased=False):
...     ours = nn.BatchNorm(use_running_average=True)  # As third-party code makes it.
>>> isinstance(ours, linen.BatchNorm), ours.unbiased
(True, False)
>>> isinstance(nn.BatchNorm(), linen.BatchNorm)
False
"""

import copyreg
import dataclasses
import functools
import inspect
from types import TracebackType
from typing import Any

import flax.linen as nn
from flax import nnx

from jaxbn import linen
from jaxbn import nnx as jaxbn_nnx


def patch_flax(**defaults: Any) -> "Patch":
    """Replaces `flax.linen.BatchNorm` and `flax.nnx.BatchNorm` by jaxbn's layers.

    This is for models that are written for Flax and have no option for their
    normalisation. From the call on, `nn.BatchNorm` and `nnx.BatchNorm` are classes of
    jaxbn. The patch lasts until its `undo()` is called, or until the end of a `with`
    block. Layers and models that were made under the patch stay as they are after it.

    Patch before you import the code of others. `from flax.linen import BatchNorm` and
    the default of a field, `norm: Any = nn.BatchNorm`, take the class that is there
    when this line runs. Code that was imported earlier keeps Flax's class. Import it
    after the patch, or reload it with `importlib.reload`.

    The layers can be copied, and can be pickled if their fields can. If defaults are
    given, pickle stores them with the class, so another process needs no patch.

    Args:
      **defaults: values of options, such as `unbiased=False`, for layers that are made
        without them. An option that only one of the two layers has applies to that one.

    Returns:
      The patch: a context manager with the method `undo()`.

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
            base: with_defaults(
                base, {name: defaults[name] for name in defaults if name in names}
            )
            for base, names in options.items()
        }
    )


class Patch:
    """A replacement of Flax's layers by jaxbn's, until it is undone.

    Args:
      kinds: the class that replaces Flax's, for each layer of jaxbn.
    """

    def __init__(self, kinds: dict[type, type]):
        self._kinds = kinds
        self._before: dict[type, Any] = {}
        self._apply()

    def _apply(self) -> None:
        self._before = {base: place.BatchNorm for base, place in _PLACES.items()}
        self._put(self._kinds)
        _ACTIVE.append(self)

    def undo(self) -> None:
        """Restores the earlier classes; does nothing if that is already done.

        A later patch stays active, and restores the same classes when it is undone.
        """
        if self not in _ACTIVE:
            return
        place = _ACTIVE.index(self)
        if later := _ACTIVE[place + 1 :]:
            later[0]._before = self._before
        else:
            self._put(self._before)
        _ACTIVE.remove(self)

    def __enter__(self) -> "Patch":
        if self not in _ACTIVE:
            self._apply()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del kind, error, traceback
        self.undo()

    @staticmethod
    def _put(kinds: dict[type, type]) -> None:
        for base, kind in kinds.items():
            _PLACES[base].BatchNorm = kind


def with_defaults(base: type, defaults: dict[str, Any]) -> type:
    """Returns a subclass of a layer of jaxbn with other defaults.

    Equal defaults give the same class if they can be hashed. No defaults give the layer
    itself.

    Args:
      base: `jaxbn.linen.BatchNorm` or `jaxbn.nnx.BatchNorm`.
      defaults: values by the name of the option.
    """
    if not defaults:
        return base
    given = {name: _hashable(defaults[name]) for name in sorted(defaults)}
    try:
        return _remembered(base, **given)
    except TypeError:  # An array, for instance, has no hash.
        return _made(base, given)


def is_made(kind: type) -> bool:
    """Returns whether `with_defaults` made this class itself, not only a base of it."""
    return _DEFAULTS in vars(kind)


def _made(base: Any, defaults: dict[str, Any]) -> type:
    members: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        _DEFAULTS: (base, defaults),
    }
    if base is linen.BatchNorm:
        fields = {field.name: field for field in dataclasses.fields(base)}
        members["__annotations__"] = {name: fields[name].type for name in defaults}
        for name, value in defaults.items():
            members[name] = _field(value, fields[name].kw_only)
        return _LinenMeta(base.__name__, (base,), members)

    @functools.wraps(base.__init__)
    def init(self: Any, *args: Any, **given: Any) -> None:
        base.__init__(self, *args, **{**defaults, **given})

    return _NnxMeta(base.__name__, (base,), {**members, "__init__": init})


def _field(value: Any, kw_only: Any) -> Any:
    """Returns a field, also for a default without a hash, such as an array."""
    if type(value).__hash__ is None:
        return dataclasses.field(default_factory=lambda: value, kw_only=kw_only)
    return dataclasses.field(default=value, kw_only=kw_only)


@functools.lru_cache(maxsize=None, typed=True)
def _remembered(base: type, **defaults: Any) -> type:
    return _made(base, defaults)


def _hashable(value: Any) -> Any:
    """Converts lists to tuples, which a field of a Linen module may have as default."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _options(base: Any) -> set[str]:
    """Returns the names of the options that can have a default."""
    names = set(inspect.signature(base.__init__).parameters)
    return names - {"self", "num_features", "rngs", "parent", "name"}


def _reduced(kind: type) -> Any:
    """Returns the pickled form of a class: its defaults, or its name if it has none."""
    return (
        (with_defaults, vars(kind)[_DEFAULTS]) if is_made(kind) else kind.__qualname__
    )


_DEFAULTS = "_jaxbn_defaults"
_PLACES: dict[type, Any] = {linen.BatchNorm: nn, jaxbn_nnx.BatchNorm: nnx}
_ACTIVE: list[Patch] = []  # The patches in effect, the first one first.

# `pickle` looks a class up by its name unless its metaclass says otherwise.
_linen_meta: Any = type(linen.BatchNorm)
_nnx_meta: Any = type(jaxbn_nnx.BatchNorm)


class _LinenMeta(_linen_meta):
    """The class of Linen layers with other defaults."""


class _NnxMeta(_nnx_meta):
    """The class of NNX layers with other defaults."""


copyreg.pickle(_LinenMeta, _reduced)
copyreg.pickle(_NnxMeta, _reduced)
