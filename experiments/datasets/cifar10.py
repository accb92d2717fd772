"""CIFAR-10, from its original archive or from mosaics of its images."""

import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.datasets import examples, mosaics

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_FOLDER = "cifar-10-batches-bin"  # The folder in the archive.
_RECORD = 1 + 3 * 32 * 32  # The bytes of a record: a label, then channel by channel.


def builder_class(folder: pathlib.Path | None = None) -> Any:
    """Returns the stock builder, changed to parse with NumPy.

    Args:
      folder: a folder with mosaics. If it is None, the archive is used and its checksum
        verified.
    """
    stock = tfds.builder_cls("cifar10")

    class Cifar10(examples.FromArrays, stock, skip_registration=True):
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
