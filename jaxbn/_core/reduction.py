"""The settings of a reduction: its axes and devices, its dtype and form."""

import math
from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

AxisName = Hashable  # One name, or a tuple of names.
AxisIndexGroups = tuple[tuple[int, ...], ...]

# The form of the variance that a user may request; see `variance`.
Variance = Literal["auto", "unconditional", "fast"]


class Devices(NamedTuple):
    """The devices along a mapped axis, and which of them share statistics."""

    axis_name: AxisName  # Bound by pmap, vmap or shard_map.
    size: int  # The number of devices.
    groups: AxisIndexGroups | None = None  # All of one size; None: one group.


class Settings(NamedTuple):
    """The settings of the moments; hashable, so that `jit` can take them as static."""

    feature_axes: tuple[int, ...]  # Canonical; all other axes are reduced.
    variance: str = "auto"  # A key of `variance.FORMS`.
    dtype: jnp.dtype | None = None  # For squares and moments; None: float32 or wider.
    devices: Devices | None = None  # Their moments are merged; None: one device.


def reduction_axes(ndim: int, feature_axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns all axes of an array except its channel axes."""
    return tuple(a for a in range(ndim) if a not in feature_axes)


def explicit_shards(x: jax.Array, axis: int) -> int:
    """Returns the number of shards into which a mesh of Explicit axes splits an axis.

    A split over mesh axes that are not Explicit is not known here and counts as 1.
    """
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] or ()
    names = names if isinstance(names, tuple) else (names,)
    return math.prod(sharding.mesh.shape[name] for name in names)


def auto_shards() -> int:
    """Returns the number of devices along the Auto axes of the mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    auto = jax.sharding.AxisType.Auto
    pairs = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in pairs if kind == auto)


def split_as_channels(
    array: jax.Array, x: jax.Array, feature_axes: tuple[int, ...]
) -> jax.Array:
    """Returns `array`, `[C]`, split over devices as the channels of `x`.

    This matters only on a mesh of Explicit axes.
    """
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty:
        return array
    return _resharded(array, jax.P(*(sharding.spec[a] for a in feature_axes)))


def with_whole_rows(array: jax.Array) -> jax.Array:
    """Returns `array` with its first axis not split over devices.

    This matters only on a mesh of Explicit axes.
    """
    spec = jax.typeof(array).sharding.spec
    return _resharded(array, jax.P(None, *spec[1:]))


def split_as(array: jax.Array, other: jax.Array) -> jax.Array:
    """Returns `array` split over devices as `other`, which has the same shape.

    This matters only on a mesh of Explicit axes.
    """
    return _resharded(array, jax.typeof(other).sharding.spec)


def _resharded(array: jax.Array, spec: jax.P) -> jax.Array:
    given = jax.typeof(array).sharding
    if given.mesh.empty or given.spec == spec:
        return array
    return jax.sharding.reshard(array, jax.NamedSharding(given.mesh, spec))


def varying_axes(x: jax.Array) -> frozenset[Any]:
    """Returns the axes along which `x` varies; none outside a checked shard_map."""
    try:
        return jax.typeof(x).manual_axis_type.varying
    except AttributeError:  # Some versions of JAX use another name.
        return getattr(jax.typeof(x), "vma", frozenset())


def widened(array: jax.Array) -> jax.Array:
    """Returns numbers in float32 or a wider dtype, and integers and keys unchanged."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return array.astype(reduction_dtype(array.dtype))


def varying_as(array: jax.Array, like: Any) -> jax.Array:
    """Marks `array` as varying over the axes over which `like` varies."""
    axes = tuple(sorted(varying_axes(like) - varying_axes(array), key=str))
    return jax.lax.pcast(array, axes, to="varying") if axes else array


def real_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the dtype of the absolute value of values of an inexact `dtype`."""
    return jnp.finfo(dtype).dtype


def reduction_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the dtype in which values of `dtype` are summed: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)
