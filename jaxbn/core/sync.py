"""Moments of one device -> moments of every group of devices.

One collective, exact for unequal and empty shards: each device writes its moments into
its row of an array of zeros, the sum over devices gives every device all rows, and the
rows are merged by their counts (Chan). Groups are rows merged apart; that works in
pmap, vmap and shard_map alike, also where `jax.lax.psum` takes no `axis_index_groups`.

The rows grow with the number of devices. Beyond `MAX_ROWS` the sums themselves are
added up, and a second time, centred, only where the data are ill conditioned.
"""

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbn.core import moments

AxisName = Hashable  # One name, or a tuple of names.
AxisIndexGroups = tuple[tuple[int, ...], ...]

# By the cost model of `python -m experiments sync_cost` rows take at most 1.25 times as
# long as one collective of sums until here; sums would need a branch as well and, where
# the data are ill conditioned, a second collective.
MAX_ROWS = 32


class Synced(NamedTuple):
    """What a device knows after the collective."""

    mine: moments.Moments  # [C] each; of this device's group
    groups: moments.Moments  # [C], or [groups, C] where there are groups


def sync_moments(
    x: jax.Array,
    feature_axes: tuple[int, ...],
    mask: jax.Array | None,
    dtype: jnp.dtype | None,
    variance: moments.Variance,
    axis_name: AxisName | None,
    axis_index_groups: AxisIndexGroups | None,
) -> Synced:
    """Moments of `x` over all devices of a group.

    Args:
      x: this device's shard, `[N, ..., C]`.
      feature_axes: canonical channel axes.
      mask: boolean of the rank of `x`, or None.
      dtype: of the reduction; see `moments.local_moments`.
      variance: see there.
      axis_name: bound axis name(s) to merge over; None merges nothing.
      axis_index_groups: groups of equal size that part the indices along `axis_name`.
    """
    options = (feature_axes, mask, dtype, variance)
    if axis_name is None:
        whole = moments.as_moments(moments.local_moments(x, *options))
        return Synced(whole, whole)
    if axis_index_groups is None and axis_size(axis_name) > MAX_ROWS:
        total = Total(axis_name)
        whole = moments.as_moments(moments.local_moments(x, *options, total))
        return Synced(whole, whole)
    local = moments.local_moments(x, *options)
    rows = _gather_rows(local, axis_name)
    if axis_index_groups is None:
        whole = moments.merge_locals(rows)
        return Synced(whole, whole)
    members = jnp.array(axis_index_groups)  # [groups, size]
    grouped = jax.tree.map(lambda part: part[members], rows)
    groups = jax.vmap(moments.merge_locals)(grouped)
    if len(axis_index_groups[0]) == 1:  # Need not wait for the others.
        return Synced(moments.as_moments(local), groups)
    index = _group_index(axis_name, axis_index_groups)
    return Synced(jax.tree.map(lambda part: part[index], groups), groups)


class Total(NamedTuple):
    """Adds up the local sums of all devices: hashable, so `jit` can hold it static."""

    axis_name: AxisName

    def __call__(self, *sums: jax.Array) -> tuple[jax.Array, ...]:
        """One collective for all of `sums`, arrays of different shapes."""
        return tuple(_split(jax.lax.psum(_concatenate(sums), self.axis_name), sums))


def group_sum(
    values: jax.Array,
    axis_name: AxisName,
    axis_index_groups: AxisIndexGroups | None,
) -> jax.Array:
    """Sum over the devices of this device's group, in one collective at most."""
    if axis_index_groups is None:
        return jax.lax.psum(values, axis_name)
    if len(axis_index_groups[0]) == 1:
        return values
    index = _group_index(axis_name, axis_index_groups)
    mine = jnp.arange(len(axis_index_groups)) == index
    mine = jnp.expand_dims(mine, range(1, values.ndim + 1))
    slots = jax.lax.psum(jnp.where(mine, values[None], 0), axis_name)
    return jnp.sum(jnp.where(mine, slots, 0), 0)


def axis_size(axis_name: AxisName) -> int:
    """Devices along a bound axis name or tuple of names.

    Raises:
      ValueError: if a name is not bound; lists those that are.
    """
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    try:
        return math.prod(jax.lax.axis_size(name) for name in names)
    except NameError as error:
        raise ValueError(
            f"`axis_name` must be bound by an enclosing pmap, vmap or shard_map, got "
            f"{axis_name!r}; bound here: {_bound_names()}. Leave it out under plain "
            "jit, where statistics are global by construction, and while initialising."
        ) from error


def check_split(x: jax.Array, axis_name: AxisName) -> None:
    """Checks that the batch is split over every name, where shard_map keeps track.

    Raises:
      ValueError: if `x` is the same on all devices along a name.
    """
    try:
        varying = jax.typeof(x).manual_axis_type.varying
    except AttributeError:  # Named otherwise in some versions of JAX.
        varying = getattr(jax.typeof(x), "vma", frozenset())
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    manual = jax.sharding.get_abstract_mesh().manual_axes
    same = [name for name in names if name in manual and name not in varying]
    if varying and same:  # Empty: not split at all, or shard_map does not check.
        raise ValueError(
            f"`axis_name` must name axes over which `x` is split, got {axis_name!r}; "
            f"`x` is split over {sorted(varying)} and the same along {same}."
        )


def _gather_rows(
    local: moments.LocalMoments, axis_name: AxisName
) -> moments.LocalMoments:
    """The moments of every device along a new first axis."""
    row = _concatenate(local)
    mine = jnp.arange(axis_size(axis_name)) == jax.lax.axis_index(axis_name)
    rows = jax.lax.psum(jnp.where(mine[:, None], row[None], 0), axis_name)
    return moments.LocalMoments(*jax.vmap(lambda row: _split(row, local))(rows))


def _concatenate(parts: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.concatenate([part.ravel() for part in parts])


def _split(row: jax.Array, like: tuple[jax.Array, ...]) -> list[jax.Array]:
    """Undoes `_concatenate`."""
    parts, start = [], 0
    for part in like:
        piece: Any = row[start : start + part.size]
        piece = piece if jnp.iscomplexobj(part) else piece.real
        parts.append(piece.reshape(part.shape))
        start += part.size
    return parts


def _group_index(axis_name: AxisName, groups: AxisIndexGroups) -> jax.Array:
    """Which of the groups this device belongs to, shape ()."""
    of_device = [0] * axis_size(axis_name)
    for index, group in enumerate(groups):
        for device in group:
            of_device[device] = index
    return jnp.array(of_device)[jax.lax.axis_index(axis_name)]


def _bound_names() -> str:
    try:  # JAX has no public way to list them.
        from jax._src import core

        names = core.get_axis_env().axis_names()
    except (ImportError, AttributeError):
        return "unknown"
    return ", ".join(repr(name) for name in names) or "none"
