"""Loads the data that the network was trained on, and the new data."""

import os
from typing import Any, Literal

import numpy as np

from experiments.data import datasets

New = Literal["digits", "fashion_mnist"]
# New data with the classes that the network was trained on. Other sets have new ones.
SAME_CLASSES = ("digits",)
Split = tuple[np.ndarray, np.ndarray]  # Images in [0, 1], float32, and labels.


def images_of(
    new_name: New, data_dir: os.PathLike | None
) -> tuple[dict[str, Split], dict[str, Split]]:
    """Returns the data that the network was trained on, and the new data, by split."""

    def load(name: datasets.Dataset, split: Any) -> Split:
        images, labels = datasets.load(name, split, data_dir)
        return images.astype(np.float32) / 255, labels

    splits = ("train", "test")
    if new_name == "fashion_mnist":
        old, new = (
            {split: load(name, split) for split in splits}
            for name in ("mnist", "fashion_mnist")
        )
        return old, new
    old = {split: load("digits", split) for split in splits}
    rng = np.random.default_rng(0)

    def by_another_camera(images: np.ndarray) -> np.ndarray:
        noise = rng.normal(scale=0.05, size=images.shape).astype(np.float32)
        return 0.4 + 0.3 * images + noise  # It has more light and less contrast.

    return old, {split: (by_another_camera(x), y) for split, (x, y) in old.items()}
