"""Merges the running statistics of replicas, and checks whether replicas agree.

Layers without an `axis_name` need this: their statistics drift apart from device to
device. Call these functions where the axis is bound: inside pmap, shard_map or vmap.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn import grouping, stats_tree
from jaxbn.core import moments, reduction


def sync_batch_stats(batch_stats: Any, axis_name: reduction.AxisName) -> Any:
    """Returns the statistics of all replicas together, the same on each replica.

        mean = average over replicas of mean_r
        var  = average over replicas of (var_r + |mean_r - mean|^2)

    A plain `pmean` ignores that the means of the replicas differ. If the state of an
    estimator has a `weight`, replicas are weighted by it, so that one that saw no batch
    does not count. Without a `weight` all replicas count alike. Everything else in the
    state is averaged; of integers the largest is taken.

    Args:
      batch_stats: `BatchStats`, the state of an estimator, or a tree of variables that
        holds pairs of `mean` and `var`.
      axis_name: bound axis or tuple of axes of the replicas.

    Returns:
      A tree of the same structure, shapes and dtypes.

    Raises:
      ValueError: if `axis_name` is not bound; the message lists the names that are.

    Example:
      >>> from jaxbn import BatchStats
      >>> stats = BatchStats(jnp.array([[0.0], [2.0]]), jnp.ones((2, 1)))
      >>> merge = lambda s: sync_batch_stats(s, "replica")
      >>> jax.vmap(merge, axis_name="replica")(stats).var[0]
      Array([2.], dtype=float32)
    """
    grouping.axis_size(axis_name)  # Raises if the name is not bound.

    def merge(state: dict[str, jax.Array]) -> dict[str, jax.Array]:
        mean, var = state["mean"], state["var"]
        average = _average(state.get("weight"), mean.ndim, axis_name)
        merged = average(mean)
        spread = average(var + moments.abs_square(mean - merged))
        others = {name: _together(leaf, axis_name) for name, leaf in state.items()}
        return {**others, "mean": merged, "var": spread}

    return stats_tree.map_states(merge, batch_stats)


def _average(
    weight: jax.Array | None, ndim: int, axis_name: reduction.AxisName
) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that averages `[C]` arrays over the replicas.

    Args:
      weight: the weight of this replica, `[C]`, or of its slots, `[C, k]`. None: all
        replicas count alike.
      ndim: the number of channel axes.
      axis_name: bound axis or axes of the replicas.
    """
    if weight is None:
        return lambda values: jax.lax.pmean(values, axis_name)
    # The slots come last, also where layers are stacked along a new axis.
    weight = jnp.sum(weight, tuple(range(ndim, weight.ndim)))
    total = jax.lax.psum(weight, axis_name)
    # Where no replica has seen a batch, all count alike.
    weight = jnp.where(total > 0, weight, 1)
    total = jnp.where(total > 0, total, jax.lax.psum(1, axis_name))

    def average(values: jax.Array) -> jax.Array:
        return (jax.lax.psum(weight * values, axis_name) / total).astype(values.dtype)

    return average


def _together(leaf: jax.Array, axis_name: reduction.AxisName) -> jax.Array:
    """Returns the average over replicas, or the largest where it must be an integer."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jax.lax.pmean(leaf, axis_name)
    return jax.lax.pmax(leaf, axis_name)


def in_sync(tree: Any, axis_name: reduction.AxisName) -> jax.Array:
    """Returns whether all replicas hold the same numbers, bit for bit.

    Args:
      tree: arrays, one copy per replica.
      axis_name: bound axis or tuple of axes of the replicas.

    Returns:
      A boolean of shape (), the same on each replica. It is False if there is a NaN.

    Raises:
      ValueError: if `axis_name` is not bound; the message lists the names that are.

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
