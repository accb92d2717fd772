"""Putting jaxbn's layers in the place of Flax's, for models that others have written.

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
    """Puts jaxbn's layers in the place of `flax.linen.BatchNorm` and of NNX's.

    A model that is written for Flax and has no option for its normalisation then uses
    jaxbn's layers: `nn.BatchNorm` and `nnx.BatchNorm` are classes of jaxbn from here
    on. A plain call lasts until `undo()` of what it returns; in a `with` statement it
    lasts until the end of the block. Layers and models that were made under the patch
    stay as they are after it.

    Patch before you import the code of others. `from flax.linen import BatchNorm` and
    `norm: Any = nn.BatchNorm`, the default of a field, take the class that is there
    when this line runs. Code that was imported earlier keeps Flax's class: patch first,
    and import it, or `importlib.reload` it, afterwards.

    The layers can be copied, and pickled as far as their fields can. Where defaults are
    given, pickle stores them with the class, so another process needs no patch.

    Args:
      **defaults: options of the layers, for those that are made without them, such as
        `unbiased=False`. An option that only one of the two layers has is for that one
        only.

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
            base: with_defaults(
                base, {name: defaults[name] for name in defaults if name in names}
            )
            for base, names in options.items()
        }
    )


class Patch:
    """Layers of jaxbn in the place of Flax's, until it is undone.

    Args:
      kinds: the class that takes the place of Flax's, for each layer of jaxbn.
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
        """Restores what was there before; does nothing if that is done already.

        A patch that was made later stays, and restores the same when it is undone.
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
    """Returns a subclass of a layer of jaxbn that has other defaults.

    Equal defaults give the same class, where they can be hashed; no defaults give the
    layer itself.

    Args:
      base: `jaxbn.linen.BatchNorm` or `jaxbn.nnx.BatchNorm`.
      defaults: by name of the option.
    """
    if not defaults:
        return base
    given = {name: _hashable(defaults[name]) for name in sorted(defaults)}
    try:
        return _remembered(base, **given)
    except TypeError:  # An array, for instance, has no hash.
        return _made(base, given)


def is_made(kind: type) -> bool:
    """Returns whether a class is one of `with_defaults`, and no subclass of it."""
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
    """Returns lists as tuples, which a field of a Linen module may have as default."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _options(base: Any) -> set[str]:
    """Returns the names of the options that a default can be given for."""
    names = set(inspect.signature(base.__init__).parameters)
    return names - {"self", "num_features", "rngs", "parent", "name"}


def _reduced(kind: type) -> Any:
    """Returns how to pickle a class: by its defaults, else by its name, as others."""
    return (
        (with_defaults, vars(kind)[_DEFAULTS]) if is_made(kind) else kind.__qualname__
    )


_DEFAULTS = "_jaxbn_defaults"
_PLACES: dict[type, Any] = {linen.BatchNorm: nn, jaxbn_nnx.BatchNorm: nnx}
_ACTIVE: list[Patch] = []  # From the first to the last that was made.

# `pickle` looks a class up by its name unless its metaclass says otherwise.
_linen_meta: Any = type(linen.BatchNorm)
_nnx_meta: Any = type(jaxbn_nnx.BatchNorm)


class _LinenMeta(_linen_meta):
    """The class of Linen layers with other defaults."""


class _NnxMeta(_nnx_meta):
    """The class of NNX layers with other defaults."""


copyreg.pickle(_LinenMeta, _reduced)
copyreg.pickle(_NnxMeta, _reduced)
