"""How to reduce: over which axes and devices, in which dtype and form of the variance.

Also what users pass for it, made canonical: channel axes and masks.
"""

import math
import operator
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

AxisName = Hashable  # One name, or a tuple of names.
AxisIndexGroups = tuple[tuple[int, ...], ...]

# How the variance is computed; see `forms`.
Variance = Literal[
    "auto", "unconditional", "fast", "checked", "two_pass", "sliced", "shifted"
]


class Reduction(NamedTuple):
    """How the moments of a batch are made: hashable, so `jit` can hold it static."""

    feature_axes: tuple[int, ...]  # Canonical; all other axes are reduced.
    variance: Variance = "auto"
    dtype: jnp.dtype | None = None  # Of squares and moments; None: float32 or wider.
    axis_name: AxisName | None = None  # Bound; None merges no devices.
    axis_index_groups: AxisIndexGroups | None = None  # Of one size, all indices.


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


def explicit_shards(x: jax.Array, axis: int) -> int:
    """Parts into which a mesh of Explicit axes splits an axis; others are not known."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] or ()
    names = names if isinstance(names, tuple) else (names,)
    return math.prod(sharding.mesh.shape[name] for name in names)


def real_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype of the absolute value of values of an inexact `dtype`."""
    return jnp.finfo(dtype).dtype


def reduction_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype in which values of `dtype` are summed: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def apart(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The same arrays, each to be widened for one sum and for nothing else.

    XLA:CPU widens within a sum what only that sum uses, and otherwise stores it.
    """
    if all(array.dtype == reduction_dtype(array.dtype) for array in arrays):
        return arrays
    # One barrier for all: equal ones would become one again.
    return _barrier(lambda *given: jax.lax.optimization_barrier(given), arrays, "cpu")


def unshared(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The same arrays; what is made of these XLA:CPU shares with nothing else."""
    # One by one: under shard_map they may vary over different axes.
    return _barrier(
        lambda *given: tuple(jax.lax.optimization_barrier(each) for each in given),
        arrays,
        "cpu",
    )


def rounded(array: jax.Array) -> jax.Array:
    """The same array, kept for the backward pass in its own dtype.

    XLA:GPU would keep the wider one that was rounded to it.
    """
    barrier = jax.lax.optimization_barrier
    return _barrier(lambda given: (barrier(given),), (array,), "cuda", "rocm")[0]


def _barrier(function, arrays: tuple[jax.Array, ...], *platforms: str):
    same = lambda *given: given  # noqa: E731
    chosen: dict[str, Any] = dict.fromkeys(platforms, function)
    return jax.lax.platform_dependent(*arrays, default=same, **chosen)
