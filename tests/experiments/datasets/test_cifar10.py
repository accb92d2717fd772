import hashlib
import io
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import datasets
from tests.experiments.datasets import batches

FILE = "cifar-10-binary.tar.gz"


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small one in the original format, registered with TFDS in its place."""
    made = batches.made_up((1, 4))
    with tarfile.open(tmp_path / FILE, "w:gz") as file:
        for name, (images, labels) in made.items():
            pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            content = np.concatenate([labels[:, None], pixels], 1).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    content = (tmp_path / FILE).read_bytes()
    stock = tfds.builder_cls("cifar10")
    (url,) = stock.url_infos
    info = tfds.download.checksums.UrlInfo(
        size=len(content),
        checksum=hashlib.sha256(content).hexdigest(),
        filename=FILE,
    )
    monkeypatch.setattr(stock, "url_infos", {url: info})
    return tmp_path, made


def test_images_and_labels_of_the_archive(archive):
    path, made = archive
    datasets.prepare("cifar10", path, path / "data")
    for split in ("train", "test"):
        images, labels = datasets.load("cifar10", split, path / "data")
        expected, expected_labels = batches.split(made, split)
        # TFDS shuffles; the pairs are the same.
        order = np.argsort([image.tobytes() for image in images])
        reference = np.argsort([image.tobytes() for image in expected])
        np.testing.assert_array_equal(images[order], expected[reference])
        np.testing.assert_array_equal(labels[order], expected_labels[reference])


def test_it_is_the_stock_set(archive):
    path, _ = archive
    datasets.prepare("cifar10", path, path / "data")
    assert "checksums verified" in datasets.origin("cifar10", path / "data")
    source = tfds.data_source(
        "cifar10", split="test", data_dir=path / "data", download=False
    )
    assert {record["id"] for record in source} == {
        f"test_{number:05d}".encode() for number in range(4)
    }
    assert tfds.builder("cifar10", data_dir=path / "data").info.features["label"].names[
        :2
    ] == ["airplane", "automobile"]


def test_a_damaged_archive_leaves_nothing(archive):
    path, _ = archive
    content = (path / FILE).read_bytes()
    (path / FILE).write_bytes(content[:-50])
    with pytest.raises(ValueError, match="truncated or not the original"):
        datasets.prepare("cifar10", path, path / "data")
    assert not [each for each in (path / "data").rglob("*") if each.is_file()]
