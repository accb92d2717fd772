"""Placement of the states of policies: entries per worker and shared entries."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxbn.core import reduction
from jaxbn.sync_policies.exchange import NAME

OF_EACH = ("own", "said")
"""Entries of a state that have a row for each worker, `[workers, C]`."""


def for_workers(tree: Any, workers: int) -> Any:
    """Returns the tree with a row for each worker in the entries that are per worker.

    Use it together with `partition_specs` for `shard_map`, where workers are devices.
    Use it alone for plain jit, where workers are parts of the batch (`group_size`).
    Under pmap and vmap each device has a copy of the whole state, so that it is not
    needed.

    Args:
      tree: variables, a `TrainState` or an NNX state in which a layer has `batch_sync`.
      workers: the number of workers.

    Raises:
      ValueError: if the tree already has rows for another number of workers.

    Example:
      >>> tree = {"batch_sync": {"own": jnp.zeros((1, 3)), "everyone": jnp.zeros(3)}}
      >>> jax.tree.map(jnp.shape, for_workers(tree, 8))
      {'batch_sync': {'everyone': (3,), 'own': (8, 3)}}
    """

    def rows(path: tuple[Any, ...], leaf: Any) -> Any:
        if not _is_of_each(path):
            return leaf
        if leaf.shape[0] not in (1, workers):
            raise ValueError(
                f"`tree` must be that of one worker, or of {workers}, got "
                f"{leaf.shape[0]} rows at {jax.tree_util.keystr(path)}."
            )
        return jnp.broadcast_to(leaf, (workers, *leaf.shape[1:]))

    return jax.tree_util.tree_map_with_path(rows, tree)


def partition_specs(tree: Any, axis_name: reduction.AxisName) -> Any:
    """Returns specs for `shard_map` that split only the workers' rows over the axis.

    Args:
      tree: the argument or the result of `for_workers`.
      axis_name: axis or axes over which the batch is split.

    Example:
      >>> tree = {"batch_sync": {"own": jnp.zeros((8, 3)), "everyone": jnp.zeros(3)}}
      >>> partition_specs(tree, "data")
      {'batch_sync': {'everyone': P(), 'own': P('data',)}}
    """
    split, whole = PartitionSpec(axis_name), PartitionSpec()
    return jax.tree_util.tree_map_with_path(
        lambda path, _: split if _is_of_each(path) else whole, tree
    )


def _is_of_each(path: tuple[Any, ...]) -> bool:
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    starts = [place for place, name in enumerate(names) if name.endswith(NAME)]
    return bool(starts) and any(name in OF_EACH for name in names[starts[0] :])
