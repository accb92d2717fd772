import gzip
import hashlib
import io
import tarfile

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from experiments import __main__ as main
from experiments.data import datasets, mosaics, preparing

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))


def made_up(tiles: tuple[int, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each batch: `tiles`, in rows and columns, of noise."""
    rng = np.random.default_rng(0)
    count = tiles[0] * tiles[1]
    return {
        name: (
            rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8),
            rng.integers(10, size=count, dtype=np.uint8),
        )
        for name in (*TRAIN, "test_batch")
    }


def joined(batches, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A split of them, one batch after the other."""
    names = TRAIN if name == "train" else ("test_batch",)
    images, labels = zip(*(batches[name] for name in names), strict=True)
    return np.concatenate(images), np.concatenate(labels)


FILE = "cifar-10-binary.tar.gz"


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small one in the original format, registered with TFDS in its place."""
    made = made_up((1, 4))
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
    preparing.prepare("cifar10", path, path / "data")
    for split in ("train", "test"):
        images, labels = datasets.load("cifar10", split, path / "data")
        expected, expected_labels = joined(made, split)
        # TFDS shuffles; the pairs are the same.
        order = np.argsort([image.tobytes() for image in images])
        reference = np.argsort([image.tobytes() for image in expected])
        np.testing.assert_array_equal(images[order], expected[reference])
        np.testing.assert_array_equal(labels[order], expected_labels[reference])


def test_it_is_the_stock_set(archive):
    path, _ = archive
    preparing.prepare("cifar10", path, path / "data")
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
        preparing.prepare("cifar10", path, path / "data")
    assert not [each for each in (path / "data").rglob("*") if each.is_file()]


TILES = (2, 3)


@pytest.fixture
def folder(tmp_path):
    """The mosaics of made-up images."""
    made = made_up(TILES)
    for name, (images, _) in made.items():
        rows = images.reshape(*TILES, 32, 32, 3).transpose(0, 2, 1, 3, 4)
        picture = PIL.Image.fromarray(rows.reshape(64, 96, 3))
        picture.save(tmp_path / f"{name}.webp", lossless=True)
    labels = {name: joined(made, name)[1] for name in ("train", "test")}
    approx = {"approx_train": np.array([3, 7]), "approx_test": np.array([1])}
    np.savez(tmp_path / "labels.npz", **labels, **approx)
    return tmp_path, made


def test_images_in_the_order_of_the_batches(folder):
    path, made = folder
    splits, origin = mosaics.read(path)
    for name in ("train", "test"):
        for actual, expected in zip(splits[name], joined(made, name), strict=True):
            np.testing.assert_array_equal(actual, expected)
    assert "3 of the 36 images (2 for training, 1 for testing)" in origin


def test_a_truncated_picture(folder):
    path, _ = folder
    file = path / "data_batch_2.webp"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"data_batch_2\.webp is damaged"):
        preparing.prepare("cifar10", path, path / "data")
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
    preparing.prepare("cifar10", path, path / "data")
    images, labels = datasets.load("cifar10", "train", path / "data")
    expected, expected_labels = joined(made, "train")
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
        preparing.prepare("cifar10", path, path / "data")


def test_the_command_that_the_message_recommends(originals, tmp_path, capsys):
    raw_dir, arrays = originals
    folder = tmp_path / "data"
    with pytest.raises(FileNotFoundError) as error:
        datasets.load("mnist", "train", folder)
    (command,) = (line for line in str(error.value).splitlines() if "python -m" in line)
    _, _, arguments = command.partition("experiments ")
    main.main([*arguments.split(), "--raw-dir", str(raw_dir)])
    assert "prepared, 12 training images" in capsys.readouterr().out
    assert len(datasets.load("mnist", "test", folder)[0]) == len(arrays["test"][0])


def test_no_network_fails_at_once(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(ConnectionError, match=r"no route.*--raw-dir"):
        preparing.prepare("mnist", None, tmp_path)


@pytest.fixture
def originals(tmp_path, monkeypatch):
    """Small files in the format of MNIST, registered with TFDS in its place."""
    rng = np.random.default_rng(0)
    raw_dir, arrays, infos = tmp_path / "raw", {}, {}
    raw_dir.mkdir()
    stock = tfds.builder_cls("mnist")
    for split, prefix, count in (("train", "train", 12), ("test", "t10k", 5)):
        images = rng.integers(256, size=(count, 28, 28), dtype=np.uint8)
        labels = rng.integers(10, size=count, dtype=np.uint8)
        arrays[split] = images, labels
        for file, header, array in (
            (f"{prefix}-images-idx3-ubyte.gz", 16, images),
            (f"{prefix}-labels-idx1-ubyte.gz", 8, labels),
        ):
            content = gzip.compress(bytes(header) + array.tobytes())
            (raw_dir / file).write_bytes(content)
            (url,) = (url for url in stock.url_infos if url.endswith(file))
            infos[url] = tfds.download.checksums.UrlInfo(
                size=len(content),
                checksum=hashlib.sha256(content).hexdigest(),
                filename=file,
            )
    monkeypatch.setattr(stock, "url_infos", infos)
    return raw_dir, arrays


def test_prepare_from_files(originals, tmp_path):
    raw_dir, arrays = originals
    preparing.prepare("mnist", raw_dir, tmp_path / "data")
    for split, (images, labels) in arrays.items():
        loaded, loaded_labels = datasets.load("mnist", split, tmp_path / "data")
        # TFDS shuffles; the pairs are the same.
        order = np.argsort([image.tobytes() for image in loaded])
        expected = np.argsort([image.tobytes() for image in images])
        np.testing.assert_array_equal(loaded[order, :, :, 0], images[expected])
        np.testing.assert_array_equal(loaded_labels[order], labels[expected])


@pytest.mark.parametrize("damage", ["truncated", "another file"])
def test_wrong_file_leaves_nothing(damage, originals, tmp_path):
    raw_dir, _ = originals
    file = raw_dir / "train-images-idx3-ubyte.gz"
    content = file.read_bytes()
    file.write_bytes(content[:-100] if damage == "truncated" else b"x" + content[1:])
    with pytest.raises(ValueError, match="truncated or not the original") as error:
        preparing.prepare("mnist", raw_dir, tmp_path / "data")
    assert file.name in str(error.value)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    with pytest.raises(FileNotFoundError):
        datasets.load("mnist", "train", tmp_path / "data")


def test_missing_file(originals, tmp_path):
    raw_dir, _ = originals
    (raw_dir / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing in .*\['t10k-labels"):
        preparing.prepare("mnist", raw_dir, tmp_path / "data")


def test_origin_of_verified_files(originals, tmp_path):
    raw_dir, _ = originals
    preparing.prepare("mnist", raw_dir, tmp_path / "data")
    assert "checksums verified" in datasets.origin("mnist", tmp_path / "data")
