"""Which statistics normalise, which of them move, and what is trained.

Flax makes these choices with one flag. Here each can be made in the constructor or in
the call, and `jaxbn.freeze` overrules them.
"""

import contextvars
from typing import Any, NamedTuple, Protocol

import jax
import jax.core
import numpy as np


class Frozen(NamedTuple):
    """What of a layer stays as it is, whatever the mode of the model."""

    statistics: bool = False  # The running ones normalise.
    updates: bool = False  # They do not move.
    scale: bool = False  # It is not trained.
    bias: bool = False


# What of the Linen layer that is called now is frozen, as `jaxbn.freeze` says.
_NOTHING = Frozen()
FROZEN = contextvars.ContextVar("FROZEN", default=_NOTHING)


class Layer(Protocol):
    """The fields of a layer that are read here."""

    update_running_average: Any


class Switches(NamedTuple):
    """What one call of a layer does."""

    use_running_average: bool  # Which statistics normalise: those of the batch if not.
    update_running_average: bool
    train_scale: bool
    train_bias: bool


def switches(
    layer: Layer,
    use_running_average: bool,
    update_running_average: bool | None,
    frozen: Frozen,
) -> Switches:
    """The switches of one call: what it says, else the layer, else the default.

    Raises:
      TypeError: if one is not True or False, or not known while tracing.
    """
    use = _as_bool("use_running_average", use_running_average)
    if update_running_average is None:
        update_running_average = layer.update_running_average
    if update_running_average is None:
        update_running_average = not use
    update = _as_bool("update_running_average", update_running_average)
    return Switches(
        use or frozen.statistics,
        update and not frozen.updates,
        not frozen.scale,
        not frozen.bias,
    )


def _as_bool(name: str, value: Any) -> bool:
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"`{name}` must be known while tracing, got {value}; mark it static, or "
            "trace a program for each value."
        )
    if (
        np.ndim(value) == 0
        and np.asarray(value).dtype.kind in "biu"
        and value in (0, 1)
    ):
        return bool(value)
    remedy = ""
    if isinstance(value, int):
        remedy = (
            "; the number of channels is that of the input and not given to a layer"
        )
    raise TypeError(f"`{name}` must be True or False, got {value!r}{remedy}.")
