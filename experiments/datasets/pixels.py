"""Reads the pixels of each data set for fully connected networks, binary or grey.

The paper's Section 4.1 reads MNIST as binary images. `PIXELS` alone decides which sets
become binary.
"""

import os
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from experiments.datasets import reading


class Pixels(NamedTuple):
    """The form of the pixels of a data set.

    Attributes:
      title: the name of the set and its pixels in tables and figures.
      binary: True to make each pixel 0 or 1, by a threshold.
    """

    title: str
    binary: bool = False


# The threshold was fitted to MNIST. The 8x8 digits lose too much with any threshold: a
# pixel there counts the ink of sixteen, and its grey shows the shape of the stroke.
PIXELS: Mapping[reading.Dataset, Pixels] = {
    "digits": Pixels("grey 8x8 digits"),
    "mnist": Pixels("binarised MNIST", binary=True),
    "fashion_mnist": Pixels("grey Fashion-MNIST"),
    "cifar10": Pixels("CIFAR-10 in colour"),
}


def flat_pixels(
    name: reading.Dataset,
    split: Literal["train", "test"],
    ink: int = 128,
    data_dir: os.PathLike | None = None,
) -> dict[str, np.ndarray]:
    """Reads a split with binary or grey pixels, as `PIXELS` says for the set.

    Args:
      name: the name of the TFDS data set.
      split: "train" or "test".
      ink: the threshold of `binarize`; it has no effect on sets that are not binary.
      data_dir: the folder of TFDS, as in `load`.

    Returns:
      `image`, `[N, pixels]`, uint8 of 0 and 1 or float32 in [0, 1], and `label`,
      `[N]` int32.
    """
    if not PIXELS[name].binary:
        return reading.flat(name, split, data_dir)
    images, labels = reading.load(name, split, data_dir)
    return {"image": binarize(images, ink), "label": labels}


def binarize(images: np.ndarray, ink: int = 128) -> np.ndarray:
    """Returns uint8 images `[N, pixels]` that are 1 where `images` are at least `ink`.

    They are 0 elsewhere.
    """
    return (images.reshape(len(images), -1) >= ink).astype(np.uint8)
