"""The sharding of states: some entries have a row per worker, others do not."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxbn._core import reduction
from jaxbn._core.call import PER_WORKER


def for_workers(tree: Any, workers: int) -> Any:
    """Returns the tree with a row for each worker in the entries that are per worker.

    Use it together with `partition_specs` for `shard_map`, where workers are devices.
    Use it alone for plain jit, where workers are parts of the batch (`group_size`). It
    is not needed under pmap and vmap, where each device has its own copy of the state.

    Args:
      tree: variables, a `TrainState`, an NNX state or `BatchStats` with the state of a
        policy.
      workers: the number of workers.

    Raises:
      ValueError: if the tree has rows for another number of workers already.

    Example:
      >>> tree = {"batch_sync": {"own": jnp.zeros((1, 3)), "everyone": jnp.zeros(3)}}
      >>> jax.tree.map(jnp.shape, for_workers(tree, 8))
      {'batch_sync': {'everyone': (3,), 'own': (8, 3)}}
    """

    def rows(path: tuple[Any, ...], leaf: Any) -> Any:
        if not _is_per_worker(path):
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
        lambda path, _: split if _is_per_worker(path) else whole, tree
    )


def _is_per_worker(path: tuple[Any, ...]) -> bool:
    """Returns whether a leaf has a row for each worker."""
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    for place, key in enumerate(path):
        # A state is in `BatchStats.sync`, in a collection of Linen, or in a variable of
        # NNX.
        in_stats = isinstance(key, jax.tree_util.GetAttrKey) and names[place] == "sync"
        if in_stats or names[place].endswith("batch_sync"):
            return any(name in PER_WORKER for name in names[place:])
    return False
