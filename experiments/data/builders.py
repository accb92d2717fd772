"""Builders of the data sets, which parse with NumPy where TFDS needs TensorFlow.

The stock builders of MNIST, Fashion-MNIST and CIFAR-10 parse their files with
TensorFlow. The builders here keep names, versions, features and registered checksums.
"""

import gzip
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import PIL.Image
import sklearn.datasets
import tensorflow_datasets as tfds

from experiments.data import mosaics

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_IDX = (("train", "train"), ("test", "t10k"))  # The splits and their file prefixes.
_FOLDER = "cifar-10-batches-bin"  # The folder in the archive of CIFAR-10.
_RECORD = 1 + 3 * 32 * 32  # The bytes of a record: a label, then channel by channel.


class FromArrays:
    """The examples of a builder whose splits are arrays of images and labels."""

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": PIL.Image.fromarray(image), "label": int(label)}


class Digits(FromArrays, tfds.core.GeneratorBasedBuilder):
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels: no download."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://archive.ics.uci.edu/dataset/80",
            supervised_keys=("image", "label"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        images = (images * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8)
        return {
            "train": self._generate_examples(images[:1500], labels[:1500]),
            "test": self._generate_examples(images[1500:], labels[1500:]),
        }


def idx_builder(name: Literal["mnist", "fashion_mnist"]) -> Any:
    """Returns the stock builder, changed to parse with NumPy."""
    stock = tfds.builder_cls(name)

    class IdxBuilder(FromArrays, stock, skip_registration=True):
        name = stock.name
        url_infos = stock.url_infos  # They have the registered sha256 sums.

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            def read(file: str, header: int) -> np.ndarray:
                path = dl_manager.download(f"{self.URL}{file}-ubyte.gz")
                content = gzip.decompress(path.read_bytes())
                return np.frombuffer(content, np.uint8, offset=header)

            return {
                split: self._generate_examples(
                    read(f"{prefix}-images-idx3", 16).reshape(-1, 28, 28),
                    read(f"{prefix}-labels-idx1", 8),
                )
                for split, prefix in _IDX
            }

    return IdxBuilder


def cifar10_builder(folder: pathlib.Path | None = None) -> Any:
    """Returns the stock builder, changed to parse with NumPy.

    Args:
      folder: a folder with mosaics. If it is None, the archive is used and its checksum
        verified.
    """
    stock = tfds.builder_cls("cifar10")

    class Cifar10(FromArrays, stock, skip_registration=True):
        name = stock.name
        url_infos = stock.url_infos  # They have the registered sha256 sum.

        def _info(self) -> tfds.core.DatasetInfo:
            info = super()._info()
            return tfds.core.DatasetInfo(
                builder=self,
                description=info.description,
                features=info.features,
                supervised_keys=info.supervised_keys,
                homepage=info.homepage,
                citation=info.citation,
                # It is written beside the records, as `metadata.json`.
                metadata=tfds.core.MetadataDict(),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            self.info.features["label"].names = CLASSES
            if folder is None:
                splits = _read_archive(dl_manager.download(self._cifar_info.url))
            else:
                splits, self.info.metadata["origin"] = mosaics.read(folder)
            return {
                split: self._generate_examples(split, *arrays)
                for split, arrays in splits.items()
            }

        def _generate_examples(
            self, split: str, images: np.ndarray, labels: np.ndarray
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, example in super()._generate_examples(images, labels):
                yield i, {"id": f"{split}_{i:05d}", **example}

    return Cifar10


def _read_archive(path: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    with tarfile.open(path) as archive:

        def split(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
            content = b"".join(
                archive.extractfile(f"{_FOLDER}/{name}.bin").read() for name in names
            )
            records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
            images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            return images, records[:, 0]

        return {name: split(names) for name, names in mosaics.BATCHES.items()}
