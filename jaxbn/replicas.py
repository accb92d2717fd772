"""Running statistics that replicas kept apart: merge them, or see whether they agree.

For layers without an `axis_name`, whose statistics drift apart from device to device.
Call these where the axis is bound: inside pmap, shard_map or vmap.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbn import grouping, stats_tree
from jaxbn.core import moments, reduction


def sync_batch_stats(batch_stats: Any, axis_name: reduction.AxisName) -> Any:
    """Statistics of all replicas together, the same on each.

        mean = mean over replicas of mean_r
        var  = mean over replicas of (var_r + |mean_r - mean|^2)

    A plain `pmean` forgets that the means of the replicas differ. Replicas count alike.

    Args:
      batch_stats: `BatchStats`, or a tree of variables that holds pairs of `mean` and
        `var`.
      axis_name: bound axis or tuple of axes of the replicas.

    Returns:
      The same structure, shapes and dtypes.

    Raises:
      ValueError: if `axis_name` is not bound; lists the names that are.

    Example:
      >>> from jaxbn import BatchStats
      >>> stats = BatchStats(jnp.array([[0.0], [2.0]]), jnp.ones((2, 1)))
      >>> merge = lambda s: sync_batch_stats(s, "replica")
      >>> jax.vmap(merge, axis_name="replica")(stats).var[0]
      Array([2.], dtype=float32)
    """
    grouping.axis_size(axis_name)  # Raises if the name is not bound.

    def merge(mean: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
        merged = jax.lax.pmean(mean, axis_name)
        spread = var + moments.abs_square(mean - merged)
        return merged, jax.lax.pmean(spread, axis_name)

    return stats_tree.map_pairs(merge, batch_stats)


def in_sync(tree: Any, axis_name: reduction.AxisName) -> jax.Array:
    """Whether all replicas hold the same numbers, bit for bit.

    Args:
      tree: arrays, one copy per replica.
      axis_name: bound axis or tuple of axes of the replicas.

    Returns:
      A boolean of shape (), the same on each replica. NaN equals nothing.

    Raises:
      ValueError: if `axis_name` is not bound; lists the names that are.

    Example:
      >>> same = lambda x: in_sync(x, "replica")
      >>> jax.vmap(same, axis_name="replica")(jnp.array([[1.0, 2.0], [1.0, 3.0]]))
      Array([False, False], dtype=bool)
    """
    grouping.axis_size(axis_name)
    differ = jnp.zeros((), jnp.int32)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        parts = (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)
        for part in parts:
            low, high = jax.lax.pmin(part, axis_name), jax.lax.pmax(part, axis_name)
            differ += jnp.sum(~(low == high), dtype=jnp.int32)
    return differ == 0
