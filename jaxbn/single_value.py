"""A warning at the user's line where a batch leaves one value per channel."""

import math
import sys
import warnings

import jax

from jaxbn.core import reduction

# Packages whose frames lie between the user's line and the warning.
_PACKAGES = ("jaxbn", "flax", "jax", "contextlib", "functools")


def warn(x: jax.Array, how: reduction.Reduction, name: str | None = None) -> None:
    """Warns where the shapes leave one value per channel in the whole group.

    Args:
      x: `[N, ..., C]`, of one device.
      how: the axes of `x` and the devices.
      name: of the layer.
    """
    axes = reduction.reduction_axes(x.ndim, how.feature_axes)
    count = math.prod(x.shape[a] for a in axes)
    if how.devices is not None:
        groups = how.devices.groups
        count *= len(groups[0]) if groups else how.devices.size
    if count == 1:
        layer = f" of layer {name!r}" if name else ""
        warnings.warn(
            f"`x`{layer}, of shape {x.shape}, has one value per channel, which has no "
            "variance: the output is the bias and the running statistics stay as they "
            "are. Drop the last batch, merge it with another, or use the running "
            "average.",
            UserWarning,
            stacklevel=_level_of_user(),
        )


def _level_of_user() -> int:
    """The `stacklevel` of the first frame that belongs to no library."""
    level, frame = 1, sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in _PACKAGES:
            return level
        level, frame = level + 1, frame.f_back
    return 2
