"""Reads MNIST and Fashion-MNIST from their four files in the IDX format."""

import gzip
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds

from experiments.datasets import examples

FILES = (("train", "train"), ("test", "t10k"))  # The splits and their file prefixes.


def builder_class(name: Literal["mnist", "fashion_mnist"]) -> Any:
    """Returns the stock builder, changed to parse with NumPy."""
    stock = tfds.builder_cls(name)

    class IdxBuilder(examples.FromArrays, stock, skip_registration=True):
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
                for split, prefix in FILES
            }

    return IdxBuilder
