"""Merges the moments of single devices into moments of every group of devices.

This takes one collective, and is exact for unequal and empty shards. Each device writes
its moments into its row of an array of zeros. The sum over devices gives every device
all rows, and the rows are merged by their counts (Chan). Groups merge only their own
rows. This works in pmap, vmap and shard_map, also where `jax.lax.psum` takes no
`axis_index_groups`.

The rows grow with the number of devices. Beyond `MAX_ROWS` devices a collective adds up
sums about 0 instead. A second one adds up sums about the mean if the data are ill
conditioned, and always on a GPU. With one device per group, only the moments of all
devices are merged, because the running statistics need no others. Other groups always
use rows.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbn._core import moments, reduction, variance
from jaxbn._core.reduction import AxisName, Devices

# Up to this many devices one collective of rows takes at most 1.25 times as long as one
# of sums, by the cost model of `python -m experiments sync_cost`. Sums need a branch as
# well and, where the data are ill conditioned, a second collective.
MAX_ROWS = 32


class Synced(NamedTuple):
    """The moments that a device has after the collective."""

    mine: moments.Moments  # Of this device's group, [C].
    groups: moments.Moments  # Of all devices, [C]; [groups, C] if groups are larger.


def sync_moments(
    settings: reduction.Settings, x: jax.Array, mask: jax.Array | None
) -> Synced:
    """Computes the moments of `x` over all devices of a group.

    Args:
      settings: the settings of the moments, and the devices.
      x: this device's shard, `[N, ..., C]`.
      mask: boolean of the rank of `x`, or None.
    """
    devices = settings.devices
    mine = variance.local_moments(settings._replace(devices=None), x, mask)
    alone = moments.count_per_channel(mine)
    if devices is None:
        return Synced(alone, alone)
    single = devices.groups is not None and len(devices.groups[0]) == 1
    if devices.groups is None or single:
        if devices.size <= MAX_ROWS:
            whole = moments.merge_rows(_gather_rows(mine, devices))
        else:
            axes = reduction.reduction_axes(x.ndim, settings.feature_axes)
            number = devices.size * math.prod(x.shape[a] for a in axes)
            # With one device per group no layer waits for the second collective.
            whole = _merge_sums(mine, devices.axis_name, number, twice=single)
        return Synced(alone if single else whole, whole)
    rows = _gather_rows(mine, devices)
    members = jnp.array(devices.groups)  # [groups, size]
    grouped = jax.tree.map(lambda part: part[members], rows)
    groups = jax.vmap(moments.merge_rows)(grouped)
    index = _group_index(devices)
    return Synced(jax.tree.map(lambda part: part[index], groups), groups)


def _merge_sums(
    mine: moments.Moments, axis_name: AxisName, number: int, twice: bool = False
) -> moments.Moments:
    """Merges the moments by sums, whose size does not grow with the devices.

    The second collective, about the mean, sends `[C]` arrays and needs no pass over the
    data. A conditional may make a GPU wait for the host, so a GPU always runs this
    collective.

    Args:
      mine: moments of this device.
      axis_name: bound axis name(s).
      number: an upper bound on the sum of all devices' counts.
      twice: always run the second collective.
    """

    def add_up(*sums: jax.Array) -> list[jax.Array]:
        return _split(jax.lax.psum(_concatenate(sums), axis_name), sums)

    weight = mine.count / number  # At most 1, so that no sum overflows.
    square = mine.var + moments.abs_square(mine.mean)
    count, mean, square = add_up(mine.count, weight * mine.mean, weight * square)
    share = jnp.maximum(count, 1) / number
    mean, square = mean / share, square / share
    var = jnp.maximum(square - moments.abs_square(mean), 0)

    def again() -> tuple[jax.Array, jax.Array, jax.Array]:
        center = jnp.where(jnp.isfinite(mean), mean, 0)
        delta = (mine.mean - center) + mine.tail
        square = mine.var + moments.abs_square(delta)
        offset, square = add_up(weight * delta, weight * square)
        return moments.about(center, offset / share, square / share)

    def where_needed() -> tuple[jax.Array, jax.Array, jax.Array]:
        enough = moments.well_conditioned(mean, var)
        as_it_is = mean, var, jnp.zeros_like(mean)
        return jax.lax.cond(enough, lambda: as_it_is, again)

    default = again if twice else where_needed
    parts = jax.lax.platform_dependent(cuda=again, rocm=again, default=default)
    return moments.count_per_channel(moments.Moments(count, *parts))


def group_sum(values: jax.Array, devices: Devices) -> jax.Array:
    """Returns the sum over this device's group, in one collective at most."""
    axis_name, groups = devices.axis_name, devices.groups
    if groups is None:
        return jax.lax.psum(values, axis_name)
    if len(groups[0]) == 1:
        return values
    index = _group_index(devices)
    mine = jnp.arange(len(groups)) == index
    mine = jnp.expand_dims(mine, range(1, values.ndim + 1))
    slots = jax.lax.psum(jnp.where(mine, values[None], 0), axis_name)
    return jnp.sum(jnp.where(mine, slots, 0), 0)


def _gather_rows(mine: moments.Moments, devices: Devices) -> moments.Moments:
    """Returns the moments of every device along a new first axis."""
    row = _concatenate(mine)
    here = jnp.arange(devices.size) == jax.lax.axis_index(devices.axis_name)
    rows = jax.lax.psum(jnp.where(here[:, None], row[None], 0), devices.axis_name)
    return moments.Moments(*jax.vmap(lambda row: _split(row, mine))(rows))


def _concatenate(parts: tuple[Any, ...]) -> jax.Array:
    """Returns all parts in one row, so that one collective can carry them."""
    return jnp.concatenate([part.ravel() for part in parts])


def _split(row: jax.Array, like: tuple[Any, ...]) -> list[jax.Array]:
    """Splits a row made by `_concatenate` into arrays shaped as in `like`."""
    parts, start = [], 0
    for part in like:
        piece: Any = row[start : start + part.size]
        piece = piece if jnp.iscomplexobj(part) else piece.real
        parts.append(piece.reshape(part.shape))
        start += part.size
    return parts


def _group_index(devices: Devices) -> jax.Array:
    """Returns the index of this device's group, of shape ()."""
    group_of = [0] * devices.size
    for index, group in enumerate(devices.groups or ()):
        for device in group:
            group_of[device] = index
    return jnp.array(group_of)[jax.lax.axis_index(devices.axis_name)]
