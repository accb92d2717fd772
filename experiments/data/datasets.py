"""Reads prepared splits as arrays, for networks of all kinds.

Sets are prepared once, as ArrayRecord, and read with `tfds.data_source`. The paper's
Section 4.1 reads MNIST as binary images. `PIXELS` decides which sets become binary.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import builders

Dataset = Literal["digits", "mnist", "fashion_mnist", "cifar10"]
FORMAT = "array_record"  # It is read in any order, without TensorFlow.

# The digits are kept in the project, so that the home directory stays untouched.
_DIGITS = pathlib.Path(__file__).parents[2] / "runs" / "data"

tfds.disable_progress_bar()


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
PIXELS: Mapping[Dataset, Pixels] = {
    "digits": Pixels("grey 8x8 digits"),
    "mnist": Pixels("binarised MNIST", binary=True),
    "fashion_mnist": Pixels("grey Fashion-MNIST"),
    "cifar10": Pixels("CIFAR-10 in colour"),
}


def load(
    name: Dataset, split: Literal["train", "test"], data_dir: os.PathLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a prepared split as two arrays; `digits` is prepared on first use.

    Args:
      name: the name of the TFDS data set.
      split: "train" or "test".
      data_dir: the folder where TFDS keeps its data. The default is that of TFDS, and
        for digits `runs/data` of the project.

    Returns:
      Images `[N, H, W, C]` uint8 (C is 3 for CIFAR-10, else 1) and labels `[N]` int32.

    Raises:
      FileNotFoundError: if the set is not prepared; the message says how to prepare it.
        Nothing is downloaded.
    """
    source = prepared(name, data_dir).as_data_source(split)
    records = source.__getitems__(range(len(source)))
    images = np.stack([record["image"] for record in records])
    labels = np.array([record["label"] for record in records], np.int32)
    return images, labels


def origin(name: Dataset, data_dir: os.PathLike | None = None) -> str:
    """Returns the origin of the images of a prepared set, for the JSON of a study.

    Args:
      name: the name of the TFDS data set.
      data_dir: the folder of TFDS, as in `load`.

    Returns:
      The origin in a few words.

    Raises:
      FileNotFoundError: as in `load`.
    """
    info = prepared(name, data_dir).info
    if info.metadata and "origin" in info.metadata:
        return info.metadata["origin"]
    if name == "digits":
        return "bundled with scikit-learn"
    # TFDS records the size of downloads only if it verified their checksums.
    if info.download_size:
        return "from the original files, checksums verified"
    return "not from the registered files; what it was made of is not recorded"


def scaled(
    name: Dataset, split: Literal["train", "test"], data_dir: os.PathLike | None = None
) -> dict[str, np.ndarray]:
    """Reads a split as `load`: `image`, float32 in [0, 1], and `label`."""
    images, labels = load(name, split, data_dir)
    return {"image": images.astype(np.float32) / 255, "label": labels}


def first(split: Mapping[str, Any], examples: int) -> dict[str, Any]:
    """Returns the first examples of a split."""
    return {name: array[:examples] for name, array in split.items()}


def flat(
    name: Dataset, split: Literal["train", "test"], data_dir: os.PathLike | None = None
) -> dict[str, np.ndarray]:
    """Reads a split for a fully connected network.

    Args:
      name: the name of the TFDS data set.
      split: "train" or "test".
      data_dir: the folder of TFDS, as in `load`.

    Returns:
      `image`, `[N, pixels]` float32 in [0, 1], and `label`, `[N]` int32.
    """
    made = scaled(name, split, data_dir)
    return {**made, "image": made["image"].reshape(len(made["image"]), -1)}


def flat_splits(
    name: Dataset, data_dir: os.PathLike | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads training set and test set with `flat`."""
    return flat(name, "train", data_dir), flat(name, "test", data_dir)


def flat_pixels(
    name: Dataset,
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
        return flat(name, split, data_dir)
    images, labels = load(name, split, data_dir)
    return {"image": binarize(images, ink), "label": labels}


def binarize(images: np.ndarray, ink: int = 128) -> np.ndarray:
    """Returns uint8 images `[N, pixels]` that are 1 where `images` are at least `ink`.

    They are 0 elsewhere.
    """
    return (images.reshape(len(images), -1) >= ink).astype(np.uint8)


def halved(split: Mapping[str, Any]) -> dict[str, Any]:
    """Halves the sides of images that have 16 rows or more.

    Each pixel of the result is the mean of two by two pixels.

    Args:
      split: `image`, `[N, H, W, C]`, and other arrays, which stay as they are.
    """
    images = np.asarray(split["image"])
    examples, height, width, channels = images.shape
    if height < 16:
        return dict(split)
    parts = images.reshape(examples, height // 2, 2, width // 2, 2, channels)
    return {**split, "image": parts.mean((2, 4))}


def make_builder(
    name: Dataset,
    data_dir: os.PathLike | None,
    mosaics: pathlib.Path | None = None,
) -> Any:
    """Returns the TFDS builder of a set.

    Args:
      name: the name of the TFDS data set.
      data_dir: the folder of TFDS, as in `load`.
      mosaics: a folder with mosaics of CIFAR-10 from which it is prepared.

    Raises:
      ValueError: if there is no such set.
    """
    if name not in get_args(Dataset):
        raise ValueError(f"`name` must be one of {get_args(Dataset)}, got {name!r}.")
    if name == "digits":
        return builders.Digits(data_dir=data_dir or _DIGITS, file_format=FORMAT)
    if name == "cifar10":
        cls = builders.cifar10_builder(mosaics)
    else:
        cls = builders.idx_builder(name)
    return cls(data_dir=data_dir, file_format=FORMAT)


def prepared(name: Dataset, data_dir: os.PathLike | None = None) -> Any:
    """Returns the TFDS builder of a prepared set; `digits` is prepared on first use.

    Args:
      name: the name of the TFDS data set.
      data_dir: the folder of TFDS, as in `load`.

    Raises:
      FileNotFoundError: as in `load`.
    """
    builder = make_builder(name, data_dir)
    if builder.is_prepared():
        return builder
    if name != "digits":
        where = "" if data_dir is None else f" --data-dir {data_dir}"
        raise FileNotFoundError(
            f"The data set {name!r} is not prepared in {builder.data_path}. Run\n"
            f"  python -m experiments prepare {name}{where}\n"
            "to download and prepare it, with `--raw-dir DIR` if you already have "
            "its original files."
        )
    builder.download_and_prepare()
    return builder
