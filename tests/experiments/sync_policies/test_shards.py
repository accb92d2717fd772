import numpy as np
import pytest

from experiments.sync_policies import shards

LABELS = np.random.default_rng(1).integers(0, 4, size=83)
DATA = {"image": np.arange(83.0)[:, None], "label": LABELS}


@pytest.mark.parametrize("by_label", [False, True])
def test_every_example_is_in_one_shard(by_label):
    made = shards.split(DATA, 8, by_label)
    assert made["image"].shape == (10, 8, 1)
    assert made["label"].shape == (10, 8)
    used = made["image"].ravel().astype(int)
    assert len(set(used)) == 80
    np.testing.assert_array_equal(made["label"].ravel(), LABELS[used])


def test_sorted_by_label():
    labels = shards.split(DATA, 8, True)["label"]
    assert np.all(labels[:, 1:].min(0) >= labels[:, :-1].max(0))
    assert max(len(set(column)) for column in labels.T) == 2
    shuffled = shards.split(DATA, 8, False)["label"]
    assert min(len(set(column)) for column in shuffled.T) > 2


def test_a_batch_has_worker_after_worker():
    made = shards.split(DATA, 8, True)
    batch = shards.as_batch({name: array[:3] for name, array in made.items()})
    np.testing.assert_array_equal(
        batch["image"].reshape(8, 3), made["image"][:3, :, 0].T
    )


def test_too_many_workers():
    with pytest.raises(ValueError, match="an example for each of 84 workers"):
        shards.split(DATA, 84, True)
