from typing import get_args

import numpy as np
import pytest

from experiments import datasets


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
    monkeypatch.setattr(datasets.reading, "load", lambda *_: (images, labels))
    split = datasets.flat_pixels("mnist", "test", ink=64)
    assert split["image"].dtype == np.uint8
    np.testing.assert_array_equal(split["image"], images.reshape(3, 784) >= 64)
    np.testing.assert_array_equal(split["label"], labels)


@pytest.mark.parametrize("name", get_args(datasets.Dataset))
def test_every_set_has_its_pixels_and_says_so(name):
    pixels = datasets.PIXELS[name]
    assert pixels.binary == (name == "mnist") == ("binarised" in pixels.title)
