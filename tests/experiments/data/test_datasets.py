from typing import get_args

import numpy as np
import pytest

from experiments.data import datasets


def test_digits_are_prepared_on_first_use(tmp_path):
    for _ in range(2):
        images, labels = datasets.load("digits", "train", tmp_path)
    assert images.shape == (1500, 8, 8, 1)
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert sorted(set(labels)) == list(range(10))
    assert len(datasets.load("digits", "test", tmp_path)[0]) == 297


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_not_prepared_says_how_and_does_not_download(name, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("went to the network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(
        FileNotFoundError, match=f"experiments prepare {name} --data-dir"
    ):
        datasets.load(name, "train", tmp_path)


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match=r"`name` must be one of .* got 'cifar'"):
        datasets.load("cifar", "train", tmp_path)


def test_origin_of_the_embedded_set(tmp_path):
    assert datasets.origin("digits", tmp_path) == "bundled with scikit-learn"


def test_flat(tmp_path):
    images, labels = datasets.load("digits", "test", tmp_path)
    split = datasets.flat("digits", "test", tmp_path)
    assert split["image"].shape == (297, 64)
    assert split["image"].dtype == np.float32
    np.testing.assert_array_equal(split["image"][5] * 255, images[5].ravel())
    np.testing.assert_array_equal(split["label"], labels)


def test_both_flat_splits(tmp_path):
    train, test = datasets.flat_splits("digits", tmp_path)
    assert (len(train["image"]), len(test["image"])) == (1500, 297)


def test_two_by_two_pixels_become_one():
    images = np.arange(2 * 16 * 16.0, dtype=np.float32).reshape(2, 16, 16, 1)
    made = datasets.halved({"image": images, "label": [3, 4]})
    assert made["image"].shape == (2, 8, 8, 1)
    assert made["image"][0, 0, 0, 0] == np.mean([0, 1, 16, 17])
    assert made["label"] == [3, 4]
    small = datasets.halved({"image": images[:, :8, :8]})
    assert small["image"].shape == (2, 8, 8, 1)


def test_binarize():
    images = np.array([[[0, 127], [128, 255]]], np.uint8)[..., None]
    np.testing.assert_array_equal(datasets.binarize(images), [[0, 0, 1, 1]])
    np.testing.assert_array_equal(datasets.binarize(images, ink=1), [[0, 1, 1, 1]])


def test_digits_keep_their_shades(tmp_path):
    images, labels = datasets.load("digits", "test", tmp_path)
    split = datasets.flat_pixels("digits", "test", data_dir=tmp_path)
    assert len(np.unique(split["image"])) == 17  # 0 to 16 in the original.
    np.testing.assert_array_equal(split["image"] * 255, images.reshape(-1, 64))
    np.testing.assert_array_equal(split["label"], labels)


def test_mnist_becomes_binary(monkeypatch):
    images = np.random.default_rng(0).integers(256, size=(3, 28, 28, 1), dtype=np.uint8)
    labels = np.arange(3, dtype=np.int32)
    monkeypatch.setattr(datasets, "load", lambda *_: (images, labels))
    split = datasets.flat_pixels("mnist", "test", ink=64)
    assert split["image"].dtype == np.uint8
    np.testing.assert_array_equal(split["image"], images.reshape(3, 784) >= 64)
    np.testing.assert_array_equal(split["label"], labels)


@pytest.mark.parametrize("name", get_args(datasets.Dataset))
def test_every_set_has_its_pixels_and_says_so(name):
    pixels = datasets.PIXELS[name]
    assert pixels.binary == (name == "mnist") == ("binarised" in pixels.title)
