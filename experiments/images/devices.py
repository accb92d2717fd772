"""Copies batches to the devices before they are needed."""

import functools

import grain
import jax


def put(
    batches: grain.IterDataset, sharding: jax.sharding.Sharding, ahead: int = 2
) -> grain.IterDataset:
    """Returns the batches of all processes as global arrays.

    Batches are copied to the devices while a step runs.

    Args:
      batches: the batches of this process, from `pipeline`.
      sharding: the sharding of the global batches, such as
        `NamedSharding(mesh, PartitionSpec("data"))`.
      ahead: the number of batches that wait on the devices for their step.

    Returns:
      The batches with `jax.Array`. A state of their iterator counts the batches that
      were taken, not those that wait.
    """
    place = functools.partial(jax.make_array_from_process_local_data, sharding)
    placed = batches.map(functools.partial(jax.tree.map, place))
    return grain.experimental.ThreadPrefetchIterDataset(
        placed, prefetch_buffer_size=ahead
    )
