"""How to reduce: over which axes and devices, in which dtype and form."""

import math
from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

AxisName = Hashable  # One name, or a tuple of names.
AxisIndexGroups = tuple[tuple[int, ...], ...]

# The form in which the variance is computed; see `forms`.
Variance = Literal[
    "auto", "unconditional", "fast", "checked", "two_pass", "sliced", "shifted"
]


class Devices(NamedTuple):
    """The devices along a mapped axis, and which of them share statistics."""

    axis_name: AxisName  # Bound by pmap, vmap or shard_map.
    size: int  # How many there are.
    groups: AxisIndexGroups | None = None  # All of one size; None: one group.


class Reduction(NamedTuple):
    """How the moments of a batch are made: hashable, so `jit` can hold it static."""

    feature_axes: tuple[int, ...]  # Canonical; all other axes are reduced.
    variance: Variance = "auto"
    dtype: jnp.dtype | None = None  # For squares and moments; None: float32 or wider.
    devices: Devices | None = None  # Their moments are merged; None: only one device.


def reduction_axes(ndim: int, feature_axes: tuple[int, ...]) -> tuple[int, ...]:
    """All axes of an array but its channel axes."""
    return tuple(a for a in range(ndim) if a not in feature_axes)


def explicit_shards(x: jax.Array, axis: int) -> int:
    """Parts into which a mesh of Explicit axes splits an axis; others are not known."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] or ()
    names = names if isinstance(names, tuple) else (names,)
    return math.prod(sharding.mesh.shape[name] for name in names)


def split_as_channels(
    array: jax.Array, x: jax.Array, feature_axes: tuple[int, ...]
) -> jax.Array:
    """`array`, `[C]`, split as a mesh of Explicit axes splits the channels of `x`."""
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty:
        return array
    return _resharded(array, jax.P(*(sharding.spec[a] for a in feature_axes)))


def split_as(array: jax.Array, other: jax.Array) -> jax.Array:
    """`array` split as a mesh of Explicit axes splits `other`, of the same shape."""
    return _resharded(array, jax.typeof(other).sharding.spec)


def _resharded(array: jax.Array, spec: jax.P) -> jax.Array:
    given = jax.typeof(array).sharding
    if given.mesh.empty or given.spec == spec:
        return array
    return jax.sharding.reshard(array, jax.NamedSharding(given.mesh, spec))


def varying_axes(x: jax.Array) -> frozenset[Any]:
    """Axes of a checked shard_map along which `x` may differ; none elsewhere."""
    try:
        return jax.typeof(x).manual_axis_type.varying
    except AttributeError:  # Named otherwise in some versions of JAX.
        return getattr(jax.typeof(x), "vma", frozenset())


def real_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype of the absolute value of values of an inexact `dtype`."""
    return jnp.finfo(dtype).dtype


def reduction_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype in which values of `dtype` are summed: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)
