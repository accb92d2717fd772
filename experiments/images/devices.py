"""Batches on the devices, before they are needed."""

import functools

import grain
import jax


def put(
    batches: grain.IterDataset, sharding: jax.sharding.Sharding, ahead: int = 2
) -> grain.IterDataset:
    """The batches of all processes as global arrays, copied while a step runs.

    Args:
      batches: those of this process, as `pipeline` makes them.
      sharding: of the global batches, such as
        `NamedSharding(mesh, PartitionSpec("data"))`.
      ahead: batches on the devices that wait for their step.

    Returns:
      The same with `jax.Array`; states of its iterator are those of the batches that
      were taken, not of those that wait.
    """
    place = functools.partial(jax.make_array_from_process_local_data, sharding)
    placed = batches.map(functools.partial(jax.tree.map, place))
    return grain.experimental.ThreadPrefetchIterDataset(
        placed, prefetch_buffer_size=ahead
    )
