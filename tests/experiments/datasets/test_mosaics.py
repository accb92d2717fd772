import numpy as np
import PIL.Image
import pytest

from experiments import datasets
from experiments.datasets import mosaics
from tests.experiments.datasets import batches

TILES = (2, 3)


@pytest.fixture
def folder(tmp_path):
    """The mosaics of made-up images."""
    made = batches.made_up(TILES)
    for name, (images, _) in made.items():
        rows = images.reshape(*TILES, 32, 32, 3).transpose(0, 2, 1, 3, 4)
        picture = PIL.Image.fromarray(rows.reshape(64, 96, 3))
        picture.save(tmp_path / f"{name}.webp", lossless=True)
    labels = {name: batches.split(made, name)[1] for name in ("train", "test")}
    approx = {"approx_train": np.array([3, 7]), "approx_test": np.array([1])}
    np.savez(tmp_path / "labels.npz", **labels, **approx)
    return tmp_path, made


def test_images_in_the_order_of_the_batches(folder):
    path, made = folder
    splits, origin = mosaics.read(path)
    for name in ("train", "test"):
        for actual, expected in zip(
            splits[name], batches.split(made, name), strict=True
        ):
            np.testing.assert_array_equal(actual, expected)
    assert "3 of the 36 images (2 for training, 1 for testing)" in origin


def test_a_truncated_picture(folder):
    path, _ = folder
    file = path / "data_batch_2.webp"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"data_batch_2\.webp is damaged"):
        datasets.prepare("cifar10", path, path / "data")
    assert not [each for each in (path / "data").rglob("*") if each.is_file()]


def test_a_picture_of_another_size(folder):
    path, _ = folder
    PIL.Image.new("RGB", (96, 65)).save(path / "test_batch.webp", lossless=True)
    with pytest.raises(ValueError, match="tiles of 32x32 pixels, got 65x96"):
        mosaics.read(path)


def test_labels_that_are_too_few(folder):
    path, _ = folder
    PIL.Image.new("RGB", (96, 96)).save(path / "test_batch.webp", lossless=True)
    with pytest.raises(ValueError, match=r"each of the 9 test images .* got 6"):
        mosaics.read(path)


def test_the_prepared_set_says_where_it_is_from(folder):
    path, made = folder
    datasets.prepare("cifar10", path, path / "data")
    images, labels = datasets.load("cifar10", "train", path / "data")
    expected, expected_labels = batches.split(made, "train")
    # TFDS shuffles; the pairs are the same.
    order = np.argsort([image.tobytes() for image in images])
    reference = np.argsort([image.tobytes() for image in expected])
    np.testing.assert_array_equal(images[order], expected[reference])
    np.testing.assert_array_equal(labels[order], expected_labels[reference])
    assert labels.dtype == np.int32
    assert "3 of the 36 images" in datasets.origin("cifar10", path / "data")


def test_a_missing_picture(folder):
    path, _ = folder
    (path / "data_batch_4.webp").unlink()
    with pytest.raises(FileNotFoundError, match=r"binary\.tar\.gz'\].*data_batch_4"):
        datasets.prepare("cifar10", path, path / "data")
