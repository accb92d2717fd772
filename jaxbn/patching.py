"""Puts jaxbn's layers in the place of Flax's, for models that others have written.

>>> with patch_flax(unbiased=False):
...     ours = nn.BatchNorm(use_running_average=True)  # In the code of others.
>>> isinstance(ours, linen.BatchNorm), ours.unbiased
(True, False)
>>> isinstance(nn.BatchNorm(), linen.BatchNorm)
False
"""

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

    A model that is written for Flax, without an option for its normalisation, then uses
    jaxbn's layers: from here on `nn.BatchNorm` and `nnx.BatchNorm` are classes of
    jaxbn. A plain call lasts until `undo()` of what it returns. In a `with` statement
    it lasts until the end of the block. Layers and models that were made under the
    patch stay as they are after it.

    Patch before you import the code of others. `from flax.linen import BatchNorm` and
    `norm: Any = nn.BatchNorm`, the default of a field, take the class that is there
    when this line runs. Code that was imported earlier keeps Flax's class: patch first,
    and import it, or `importlib.reload` it, afterwards.

    Args:
      **defaults: options of the layers, for layers that are made without them, such as
        `unbiased=False`. An option that only one of the two layers has applies to that
        layer alone. With defaults the classes are subclasses of jaxbn's, whose layers
        can be copied but not pickled.

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
      kinds: the class that takes the place of Flax's, for each layer of jaxbn.
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


def is_made(kind: type) -> bool:
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
        return metaclass(base.__name__, (base,), members)

    @functools.wraps(base.__init__)
    def init(self: Any, *args: Any, **given: Any) -> None:
        base.__init__(self, *args, **{**defaults, **given})

    return metaclass(base.__name__, (base,), {**members, "__init__": init})


def _options(base: Any) -> set[str]:
    """Returns the names of the options that a default can be given for."""
    names = set(inspect.signature(base.__init__).parameters)
    return names - {"self", "num_features", "rngs", "parent", "name"}


_DEFAULTS = "_jaxbn_defaults"
_PLACES: dict[type, Any] = {linen.BatchNorm: nn, jaxbn_nnx.BatchNorm: nnx}
