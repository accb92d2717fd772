"""The switches of a call: which statistics normalise, and what is updated or trained.

Flax has one flag for these choices. Here the constructor or the call makes each choice,
and `jaxbn.freeze` overrules both.
"""

import contextvars
from typing import Any, NamedTuple, Protocol

import jax
import jax.core
import numpy as np


class Frozen(NamedTuple):
    """The parts of a layer that are frozen, whatever the mode of the model."""

    statistics: bool = False  # The running statistics normalise.
    updates: bool = False  # The running statistics are not updated.
    scale: bool = False  # The scale is not trained.
    bias: bool = False  # The bias is not trained.


# The frozen parts of the Linen layer that is being called; see `jaxbn.freeze`. They are
# not an attribute of the layer, because `nn.remat` and other transformations of Linen
# call a copy of the layer, without its attributes.
_NOTHING = Frozen()
FROZEN = contextvars.ContextVar("FROZEN", default=_NOTHING)


class LayerSwitches(Protocol):
    """The fields of a layer that are read here."""

    update_running_average: Any


class Switches(NamedTuple):
    """The switches of one call of a layer."""

    use_running_average: bool  # False: the batch's own statistics normalise.
    update_running_average: bool
    train_scale: bool
    train_bias: bool


def switches(
    layer: LayerSwitches,
    use_running_average: bool,
    update_running_average: bool | None,
    frozen: Frozen,
) -> Switches:
    """Returns the switches of one call.

    A switch is that of the call, or else of the layer, or else the default. `frozen`
    overrules all of them.

    Raises:
      TypeError: if a switch is not True or False, or not known while tracing.
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
        remedy = "; a layer takes the number of channels from its input"
    raise TypeError(f"`{name}` must be True or False, got {value!r}{remedy}.")
