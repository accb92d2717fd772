import io

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from experiments.data import source


def test_records_of_every_file(split):
    assert len(split.shard_lengths) == 4
    assert sum(split.shard_lengths) == len(split.records) == 44
    assert sorted(record["label"] for record in split.records) == list(range(44))
    assert isinstance(split.records[0]["image"], bytes)


def test_shards_are_records_one_after_the_other(split, tiny_images):
    builder = tfds.builder("tiny_images", data_dir=tiny_images)
    start = 0
    for shard, length in enumerate(split.shard_lengths):
        own = builder.as_data_source(f"train[{shard}shard]")
        labels = [record["label"] for record in own]
        expected = [split.records[start + i]["label"] for i in range(length)]
        assert labels == expected
        start += length


def test_not_prepared(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("went to the network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(FileNotFoundError, match=r"'imagenet2012' is not prepared in"):
        source.read("imagenet2012", "train", tmp_path)


def test_imagenet_has_what_is_read():
    features = tfds.builder("imagenet2012").info.features
    assert {"image", "label"} <= set(features)
    assert features["label"].num_classes == 1000


def test_no_such_split(tiny_images):
    with pytest.raises(ValueError, match=r"one of \['test', 'train'\], got 'valid"):
        source.read("tiny_images", "validation", tiny_images)


def test_grey_images_have_three_channels():
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((4, 6), 77, np.uint8)).save(file, "PNG")
    decoded = np.asarray(source.decode(file.getvalue()))
    np.testing.assert_array_equal(decoded, np.full((4, 6, 3), 77))
