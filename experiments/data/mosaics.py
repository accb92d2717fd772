"""Reads CIFAR-10 from six lossless pictures, if the archive is not available.

Each batch of the archive is one picture. It has the images as tiles of 32x32 pixels,
row by row. `labels.npz` has the labels, `train` and `test`. It also has `approx_train`
and `approx_test`, the indices of the images that were only available as JPEG.
"""

import pathlib
from typing import NamedTuple

import numpy as np
import PIL.Image

BATCHES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
FILES = (
    "labels.npz",
    *(f"{name}.webp" for names in BATCHES.values() for name in names),
)
_SIDE = 32  # The side of a tile in pixels.


class Mosaics(NamedTuple):
    """The content of the pictures."""

    splits: dict[str, tuple[np.ndarray, np.ndarray]]  # [N, 32, 32, 3], [N]; uint8
    origin: str  # The origin in words, for the reports of results.


def read(folder: pathlib.Path) -> Mosaics:
    """Reads every image and label from a folder with `FILES`.

    Raises:
      ValueError: if a picture is damaged, or the numbers of images and labels differ.
    """
    with np.load(folder / "labels.npz") as arrays:
        labels = {name: arrays[name] for name in arrays.files}
    splits = {}
    for split, names in BATCHES.items():
        images = np.concatenate([_tiles(folder / f"{name}.webp") for name in names])
        if len(images) != len(labels[split]):
            raise ValueError(
                f"`labels.npz` must hold a label for each of the {len(images)} {split} "
                f"images in {folder}, got {len(labels[split])}."
            )
        splits[split] = images, labels[split]
    total = sum(len(images) for images, _ in splits.values())
    train, test = (len(labels[f"approx_{split}"]) for split in ("train", "test"))
    return Mosaics(
        splits,
        f"from lossless mosaics instead of the original archive: {train + test} of the "
        f"{total:,} images ({train} for training, {test} for testing) are decoded "
        "JPEGs, all others the original pixels",
    )


def _tiles(path: pathlib.Path) -> np.ndarray:
    """Returns the images of one picture, `[N, 32, 32, 3]`."""
    try:
        with PIL.Image.open(path) as file:
            picture = np.asarray(file.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path} is damaged; fetch it again. {error}") from error
    height, width, _ = picture.shape
    if height % _SIDE or width % _SIDE:
        raise ValueError(
            f"{path} must be made of tiles of {_SIDE}x{_SIDE} pixels, got {height}x"
            f"{width}."
        )
    grid = picture.reshape(height // _SIDE, _SIDE, width // _SIDE, _SIDE, 3)
    return grid.swapaxes(1, 2).reshape(-1, _SIDE, _SIDE, 3)
