"""Moments of one device -> moments of the whole group of devices.

One collective, exact for unequal and empty shards: each device writes its moments into
its row of an array of zeros, the sum over devices gives every device all rows, and the
rows are merged by their counts (Chan).
"""

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn.core import moments

AxisName = Hashable  # One name, or a tuple of names.
AxisIndexGroups = tuple[tuple[int, ...], ...]


def sync_moments(
    local: moments.LocalMoments,
    axis_name: AxisName | None,
    axis_index_groups: AxisIndexGroups | None,
) -> moments.Moments:
    """Merges the moments of all devices of a group; every device gets the result.

    Args:
      local: this device's moments, `[C]` each.
      axis_name: bound axis name(s) to merge over; None merges nothing.
      axis_index_groups: disjoint groups of indices along `axis_name`; each group gets
        the moments of its own members. Where `jax.lax.psum` allows it.
    """
    if axis_name is None:
        return moments.as_moments(local)
    row = jnp.concatenate([part.ravel() for part in local])
    mine = jnp.arange(axis_size(axis_name)) == jax.lax.axis_index(axis_name)
    rows = jnp.where(mine[:, None], row[None], 0)
    rows = global_sum(rows, axis_name, axis_index_groups)
    return moments.merge_locals(_unravel(rows, local))


def global_sum(
    values: jax.Array,
    axis_name: AxisName,
    axis_index_groups: AxisIndexGroups | None,
) -> jax.Array:
    """Sum over the devices of a group, in one collective."""
    return jax.lax.psum(values, axis_name, axis_index_groups=axis_index_groups)


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


def _unravel(rows: jax.Array, local: moments.LocalMoments) -> moments.LocalMoments:
    """Splits `[devices, sum of sizes]` back into parts of their shapes and dtypes."""
    parts, start = [], 0
    for part in local:
        columns: Any = rows[:, start : start + part.size]
        if not jnp.iscomplexobj(part):
            columns = columns.real
        parts.append(columns.reshape((rows.shape[0], *part.shape)))
        start += part.size
    return moments.LocalMoments(*parts)


def _bound_names() -> str:
    try:  # JAX has no public way to list them.
        from jax._src import core

        names = core.get_axis_env().axis_names()
    except (ImportError, AttributeError):
        return "unknown"
    return ", ".join(repr(name) for name in names) or "none"
