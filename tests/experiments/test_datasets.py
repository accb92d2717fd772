import gzip
import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import __main__ as main
from experiments import datasets


def test_digits_are_prepared_on_first_use(tmp_path):
    for _ in range(2):
        images, labels = datasets.load("digits", "train", tmp_path)
    assert images.shape == (1500, 8, 8, 1)
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert sorted(set(labels)) == list(range(10))
    assert len(datasets.load("digits", "test", tmp_path)[0]) == 297


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_not_prepared_says_how_and_does_not_download(name, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("went to the network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(
        FileNotFoundError, match=f"experiments prepare {name} --data-dir"
    ):
        datasets.load(name, "train", tmp_path)


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
        datasets.prepare("mnist", None, tmp_path)


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match=r"`name` must be one of .* got 'cifar'"):
        datasets.load("cifar", "train", tmp_path)


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
    datasets.prepare("mnist", raw_dir, tmp_path / "data")
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
        datasets.prepare("mnist", raw_dir, tmp_path / "data")
    assert file.name in str(error.value)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    with pytest.raises(FileNotFoundError):
        datasets.load("mnist", "train", tmp_path / "data")


def test_missing_file(originals, tmp_path):
    raw_dir, _ = originals
    (raw_dir / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing in .*\['t10k-labels"):
        datasets.prepare("mnist", raw_dir, tmp_path / "data")


def test_binarize():
    images = np.array([[[0, 127], [128, 255]]], np.uint8)[..., None]
    np.testing.assert_array_equal(datasets.binarize(images), [[0, 0, 1, 1]])


def test_flat(tmp_path):
    images, labels = datasets.load("digits", "test", tmp_path)
    split = datasets.flat("digits", "test", tmp_path)
    assert split["image"].shape == (297, 64)
    assert split["image"].dtype == np.float32
    np.testing.assert_array_equal(split["image"][5] * 255, images[5].ravel())
    np.testing.assert_array_equal(split["label"], labels)
