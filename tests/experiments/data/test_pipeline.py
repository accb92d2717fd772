import itertools
import json

import jax
import numpy as np
import pytest

from experiments.data import augmentation, pipeline, source

OPTIONS = pipeline.Options(batch_size=8, size=16, threads=2, read_ahead=16)


def batches_of(split):
    return pipeline.training(split, OPTIONS, seed=0, epochs=2)


def sharding():
    mesh = jax.make_mesh((8,), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def test_global_arrays_with_the_sharding(split):
    placed = iter(pipeline.put(batches_of(split), sharding()))
    for batch, expected in zip(
        itertools.islice(placed, 3), batches_of(split), strict=False
    ):
        for name, array in batch.items():
            assert array.sharding == sharding()
            assert array.addressable_shards[3].data.shape[0] == 1
            np.testing.assert_array_equal(array, expected[name])


def test_state_is_that_of_the_batches_taken(split):
    placed = iter(pipeline.put(batches_of(split), sharding(), ahead=3))
    for _ in range(2):
        next(placed)
    state = json.loads(json.dumps(placed.get_state()))
    expected = [np.asarray(batch["label"]) for batch in placed]
    resumed = iter(pipeline.put(batches_of(split), sharding(), ahead=3))
    resumed.set_state(state)
    found = [np.asarray(batch["label"]) for batch in resumed]
    assert len(found) == 9
    np.testing.assert_array_equal(found, expected)


OPTIONS_PIPELINE = pipeline.Options(batch_size=8, size=16, threads=2, read_ahead=16)


def take(batches, count=None):
    return list(itertools.islice(iter(batches), count))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert sorted(batch) == sorted(other)
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_of_an_epoch(split):
    batches = take(pipeline.training(split, OPTIONS_PIPELINE, seed=0, epochs=2))
    assert len(batches) == 2 * 44 // 8
    for batch in batches:
        assert batch["image"].shape == (8, 16, 16, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
    labels = np.concatenate([batch["label"] for batch in batches])
    assert sorted(labels[:44]) == list(range(44))


def test_images_belong_to_their_labels(split):
    """A distorted part of an image resembles the image more than others do."""
    options = pipeline.Options(8, 16, area=(0.9, 1.0), photometric=0.05, threads=2)
    whole = {
        record["label"]: augmentation.central(source.decode(record["image"]), 16)
        for record in split.records
    }
    for batch in take(pipeline.training(split, options, seed=0, epochs=1)):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            distances = {
                other: min(
                    np.abs(image.astype(float) - candidate).mean()
                    for candidate in (pixels, pixels[:, ::-1])
                )
                for other, pixels in whole.items()
            }
            assert min(distances, key=distances.get) == label


def test_a_function_of_the_seed(split):
    first, again, other = (
        take(pipeline.training(split, OPTIONS_PIPELINE, seed, epochs=2), 3)
        for seed in (0, 0, 1)
    )
    assert_same(first, again)
    assert any(
        (a["label"] != b["label"]).any() for a, b in zip(first, other, strict=True)
    )


def test_an_image_is_distorted_in_another_way_in_each_epoch(split):
    batches = take(pipeline.training(split, OPTIONS_PIPELINE, seed=0, epochs=2))
    images = np.concatenate([batch["image"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    for label in range(10):
        first, second = images[np.flatnonzero(labels == label)[:2]]
        assert (first != second).any()


@pytest.mark.parametrize("taken", [0, 1, 6])
def test_resumed_from_its_state(split, taken):
    batches = iter(pipeline.training(split, OPTIONS_PIPELINE, seed=0, epochs=2))
    for _ in range(taken):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    rest = list(batches)
    resumed = iter(pipeline.training(split, OPTIONS_PIPELINE, seed=0, epochs=2))
    resumed.set_state(state)
    assert len(rest) == 11 - taken
    assert_same(rest, list(resumed))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_same_batches(split, count):
    whole = take(pipeline.training(split, OPTIONS_PIPELINE, seed=0, epochs=2), 7)
    parts = [
        take(
            pipeline.training(
                split, OPTIONS_PIPELINE, 0, 2, process=pipeline.Process(index, count)
            ),
            7,
        )
        for index in range(count)
    ]
    for step, batch in enumerate(whole):
        for name in batch:
            for index in range(count):
                expected = batch[name][index::count]
                np.testing.assert_array_equal(parts[index][step][name], expected)


def test_a_process_reads_its_own_records_only(split):
    read = []

    class Counting:
        def __getitem__(self, index):
            read.append(index)
            return split.records[index]

    counted = split._replace(records=Counting())
    take(
        pipeline.training(
            counted, OPTIONS_PIPELINE, 0, 2, process=pipeline.Process(1, 4)
        )
    )
    assert len(read) == 2 * 44 // 4


def test_evaluation_has_every_image_once(split):
    found = []
    for index in range(2):
        process = pipeline.Process(index, 2)
        batches = take(pipeline.evaluation(split, OPTIONS_PIPELINE, process))
        assert len(batches) == 6
        for batch in batches:
            assert batch["image"].shape == (4, 16, 16, 3)
            found += batch["label"][batch["mask"]].tolist()
    assert sorted(found) == list(range(44))


def test_evaluation_takes_the_middle(split):
    (first, *_) = take(pipeline.evaluation(split, OPTIONS_PIPELINE), 1)
    for place in range(8):
        image = source.decode(split.records[place]["image"])
        np.testing.assert_array_equal(
            first["image"][place], augmentation.central(image, 16)
        )


@pytest.mark.parametrize(
    ("options", "process", "message"),
    [
        ({"batch_size": 0}, (0, 1), "`batch_size` must be at least 1, got 0"),
        ({"batch_size": 9}, (0, 2), "`batch_size` must be a multiple of the 2"),
        ({"batch_size": 8}, (2, 2), "`process.index` must be less than the 2"),
        ({"batch_size": 8, "area": (0.5, 0.1)}, (0, 1), "`area` must be two shares"),
        ({"batch_size": 8, "photometric": 2}, (0, 1), "`photometric` must lie in"),
    ],
)
def test_bad_options(split, options, process, message):
    for make in (
        lambda *given: pipeline.training(split, given[0], 0, 1, given[1]),
        lambda *given: pipeline.evaluation(split, *given),
    ):
        with pytest.raises(ValueError, match=message):
            make(pipeline.Options(**options), pipeline.Process(*process))
