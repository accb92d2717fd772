import itertools
import json

import jax
import numpy as np

from experiments.images import devices, pipeline

OPTIONS = pipeline.Options(batch_size=8, size=16, threads=2, read_ahead=16)


def batches_of(split):
    return pipeline.training(split, OPTIONS, seed=0, epochs=2)


def sharding():
    mesh = jax.make_mesh((8,), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def test_global_arrays_with_the_sharding(split):
    placed = iter(devices.put(batches_of(split), sharding()))
    for batch, expected in zip(
        itertools.islice(placed, 3), batches_of(split), strict=False
    ):
        for name, array in batch.items():
            assert array.sharding == sharding()
            assert array.addressable_shards[3].data.shape[0] == 1
            np.testing.assert_array_equal(array, expected[name])


def test_state_is_that_of_the_batches_taken(split):
    placed = iter(devices.put(batches_of(split), sharding(), ahead=3))
    for _ in range(2):
        next(placed)
    state = json.loads(json.dumps(placed.get_state()))
    expected = [np.asarray(batch["label"]) for batch in placed]
    resumed = iter(devices.put(batches_of(split), sharding(), ahead=3))
    resumed.set_state(state)
    found = [np.asarray(batch["label"]) for batch in resumed]
    assert len(found) == 9
    np.testing.assert_array_equal(found, expected)
