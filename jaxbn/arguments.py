"""Checks of what users pass: static facts only, once, at the public boundary."""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbn.core import moments, running, sync


class Arguments(NamedTuple):
    """Checked arguments, as arrays of the dtypes and shapes the core expects."""

    x: jax.Array  # [N, ..., C], inexact
    scale: jax.Array  # [C]
    bias: jax.Array  # [C]
    feature_axes: tuple[int, ...]


def check_arguments(
    x: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None,
    bias: jax.typing.ArrayLike | None,
    batch_stats: running.BatchStats,
    axis: int | Sequence[int],
) -> Arguments:
    """Fits `scale`, `bias` and `batch_stats` to the channels of `x`.

    Raises:
      ValueError: if `axis` is out of range or repeated, or a shape is not `[C]`.
      TypeError: if `x` is complex and `batch_stats.mean` is not.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.float32)
    feature_axes = moments.canonicalize_axes(axis, x.ndim)
    shape = tuple(x.shape[a] for a in feature_axes)
    parameter_dtype = moments.reduction_dtype(x.dtype)
    scale = jnp.ones(shape, parameter_dtype) if scale is None else jnp.asarray(scale)
    bias = jnp.zeros(shape, parameter_dtype) if bias is None else jnp.asarray(bias)
    for name, array in (
        ("scale", scale),
        ("bias", bias),
        ("batch_stats.mean", batch_stats.mean),
        ("batch_stats.var", batch_stats.var),
    ):
        check_channels(name, array, shape)
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(batch_stats.mean):
        raise TypeError(
            "`batch_stats.mean` must be complex for complex `x`, got "
            f"{jnp.result_type(batch_stats.mean)}; make it with "
            "`init_batch_stats(shape, x.dtype)`."
        )
    return Arguments(x, scale, bias, feature_axes)


def check_channels(
    name: str, array: jax.typing.ArrayLike, shape: tuple[int, ...]
) -> None:
    """One value per channel.

    Raises:
      ValueError: if `array` has not the `shape` of the channels of `x`.
    """
    if jnp.shape(array) != shape:
        raise ValueError(
            f"`{name}` must have the shape {shape} of the channels of `x`, got "
            f"{jnp.shape(array)}; check `axis` and what the variables were made for."
        )


def check_mask(
    mask: jax.typing.ArrayLike | None, x: jax.Array, feature_axes: tuple[int, ...]
) -> jax.Array | None:
    """The mask as booleans of the rank of `x`.

    Raises:
      ValueError: if it does not broadcast to `x`, or lacks leading axes of `x` so that
        it would silently be read as a mask of channels.
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    full = (1,) * (x.ndim - mask.ndim) + mask.shape
    fits = len(full) == x.ndim and all(
        m in (1, n) for m, n in zip(full, x.shape, strict=True)
    )
    lacks_axes = 0 < mask.ndim < x.ndim
    ambiguous = mask.ndim == 1 or any(full[a] > 1 for a in feature_axes if fits)
    if not fits or (lacks_axes and ambiguous and mask.size > 1):
        raise ValueError(
            f"`mask` must broadcast to `x` of shape {x.shape}, with a size (1 where it "
            f"does not vary) for each of its axes, got {mask.shape}; add the missing "
            "axes, for instance `mask[..., None]`."
        )
    return mask.reshape(full).astype(bool)


def check_groups(
    axis_index_groups: Sequence[Sequence[int]] | None,
    axis_name: sync.AxisName | None,
) -> sync.AxisIndexGroups | None:
    """The groups as tuples.

    Raises:
      ValueError: if there are groups but no axis name.
    """
    if axis_index_groups is None:
        return None
    if axis_name is None:
        raise ValueError(
            "`axis_index_groups` needs an `axis_name` whose indices it groups, got "
            f"{axis_index_groups} and no name; give the name of the mapped axis."
        )
    return tuple(tuple(group) for group in axis_index_groups)


def check_hyperparameters(momentum: float, epsilon: float) -> None:
    """Ranges of what a layer holds as Python numbers.

    Raises:
      ValueError: if `momentum` is outside [0, 1] or `epsilon` is negative.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(
            "`momentum` is the weight of the old running statistics and must lie in "
            f"[0, 1], got {momentum}; PyTorch's `momentum` is 1 minus this one."
        )
    if not epsilon >= 0:
        raise ValueError(
            f"`epsilon` is added to the variance and must be >= 0, got {epsilon}."
        )


def warn_single_value(
    x: jax.Array,
    feature_axes: tuple[int, ...],
    axis_name: sync.AxisName | None,
    axis_index_groups: sync.AxisIndexGroups | None,
) -> None:
    """Warns where the shapes leave one value per channel in the whole group."""
    count = math.prod(x.shape[a] for a in moments.reduction_axes(x.ndim, feature_axes))
    if axis_index_groups is not None:
        count *= len(axis_index_groups[0])
    elif axis_name is not None:
        count *= sync.axis_size(axis_name)
    if count == 1:
        warnings.warn(
            f"`x` of shape {x.shape} has one value per channel, which has no variance: "
            "the output is the bias and the running statistics stay as they are. "
            "Drop the last batch, merge it with another, or use the running average.",
            UserWarning,
            stacklevel=3,
        )
