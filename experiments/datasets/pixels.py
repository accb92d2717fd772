"""What a fully connected network is given of each data set: binary or grey pixels.

The paper's Section 4.1 reads MNIST as binary images. `PIXELS` alone decides which sets
become binary.
"""

import os
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from experiments.datasets import reading


class Pixels(NamedTuple):
    """How the pixels of a data set are read.

    Attributes:
      title: names the set and its pixels in tables and figures.
      binary: makes each pixel 0 or 1, by a threshold.
    """

    title: str
    binary: bool = False


# The threshold was fitted to MNIST. The 8x8 digits lose too much by any: a pixel there
# counts the ink of sixteen, and its shade holds the shape of the stroke.
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
    """Reads a split with binary or grey pixels, as `PIXELS` says of the set.

    Args:
      name: of the TFDS data set.
      split: "train" or "test".
      ink: the threshold of `binarize`; it has no effect on sets that are not binary.
      data_dir: as for `load`.

    Returns:
      `image`, `[N, pixels]`, uint8 of 0 and 1 or float32 in [0, 1], and `label`,
      `[N]` int32.
    """
    if not PIXELS[name].binary:
        return reading.flat(name, split, data_dir)
    images, labels = reading.load(name, split, data_dir)
    return {"image": binarize(images, ink), "label": labels}


def binarize(images: np.ndarray, ink: int = 128) -> np.ndarray:
    """Makes uint8 images `[N, pixels]` of 0 and 1: 1 where they are at least `ink`."""
    return (images.reshape(len(images), -1) >= ink).astype(np.uint8)
