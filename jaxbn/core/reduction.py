"""What a reduction runs over: all axes but the channels, a mask; and in which dtype."""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def canonicalize_axes(axis: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Channel axes as ascending non-negative integers.

    Raises:
      ValueError: if an axis is out of range for `ndim` dimensions, or repeated.
    """
    axes = tuple(axis) if isinstance(axis, Sequence) else (operator.index(axis),)
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(
            f"`axis` must lie in [-{ndim}, {ndim}) for `x` of rank {ndim}, got {axis}."
        )
    canonical = tuple(sorted(a % ndim for a in axes))
    if len(set(canonical)) < len(canonical):
        raise ValueError(
            f"`axis` must name each axis once, got {axis} for `x` of rank {ndim}."
        )
    return canonical


def canonicalize_mask(
    mask: jax.typing.ArrayLike | None,
    shape: tuple[int, ...],
    feature_axes: tuple[int, ...],
) -> jax.Array | None:
    """The mask as booleans with as many axes as `shape`, of `x`.

    Raises:
      ValueError: if it does not broadcast to `shape`, or lacks leading axes so that it
        would silently be read as a mask of channels.
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    full = (1,) * (len(shape) - mask.ndim) + mask.shape
    fits = len(full) == len(shape) and all(
        m in (1, n) for m, n in zip(full, shape, strict=True)
    )
    lacks_axes = 0 < mask.ndim < len(shape)
    ambiguous = mask.ndim == 1 or any(full[a] > 1 for a in feature_axes if fits)
    if not fits or (lacks_axes and ambiguous and mask.size > 1):
        raise ValueError(
            f"`mask` must broadcast to `x` of shape {shape}, with a size (1 where it "
            f"does not vary) for each of its axes, got {mask.shape}; add the missing "
            "axes, for instance `mask[..., None]`."
        )
    return mask.reshape(full).astype(bool)


def reduction_axes(ndim: int, feature_axes: tuple[int, ...]) -> tuple[int, ...]:
    """All axes of an array but its channel axes."""
    return tuple(a for a in range(ndim) if a not in feature_axes)


def real_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype of the absolute value of values of an inexact `dtype`."""
    return jnp.finfo(dtype).dtype


def reduction_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype in which values of `dtype` are summed: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)
