"""Data sets through tensorflow-datasets, without TensorFlow.

Sets are prepared once, as ArrayRecord, and read with `tfds.data_source`. The stock
builders of MNIST and Fashion-MNIST parse their files with TensorFlow; the builder here
keeps their names, versions, features and registered checksums and parses with NumPy.
"""

import dataclasses
import gzip
import os
import pathlib
import tempfile
import urllib.request
from typing import Any, Literal, get_args

import numpy as np
import PIL.Image
import sklearn.datasets
import tensorflow_datasets as tfds
import tyro

Dataset = Literal["digits", "mnist", "fashion_mnist"]
IdxDataset = Literal["mnist", "fashion_mnist"]
_FORMAT = "array_record"  # Read at random, without TensorFlow.

# Kept in the project, so that the home directory stays untouched.
_DIGITS = pathlib.Path(__file__).parents[1] / "runs" / "data"

tfds.disable_progress_bar()


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Prepare MNIST or Fashion-MNIST from its four original files (about 10 s)."""

    dataset: tyro.conf.Positional[IdxDataset]
    """The set to prepare; `digits` needs no preparing."""
    raw_dir: pathlib.Path | None = None
    """Folder with the downloaded originals; left out: download them."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own default."""

    def run(self) -> None:
        prepare(self.dataset, self.raw_dir, self.data_dir)
        images, _ = load(self.dataset, "train", self.data_dir)
        print(f"{self.dataset}: prepared, {len(images)} training images.")


def load(
    name: Dataset, split: Literal["train", "test"], data_dir: os.PathLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A prepared split as two arrays; `digits` is prepared on first use.

    Args:
      name: of the TFDS data set.
      split: "train" or "test".
      data_dir: where TFDS keeps its data; default: its own default, for digits
        `runs/data` of the project.

    Returns:
      Images `[N, H, W, 1]` uint8 and labels `[N]` int32.

    Raises:
      FileNotFoundError: if the set is not prepared; says how to. Never downloads.
    """
    builder = _builder(name, data_dir)
    if not builder.is_prepared():
        if name != "digits":
            where = "" if data_dir is None else f" --data-dir {data_dir}"
            raise FileNotFoundError(
                f"The data set {name!r} is not prepared in {builder.data_path}. Run\n"
                f"  python -m experiments prepare {name}{where}\n"
                "to download and prepare it, with `--raw-dir DIR` if you already have "
                "its original files."
            )
        builder.download_and_prepare()
    source = builder.as_data_source(split)
    records = source.__getitems__(range(len(source)))
    images = np.stack([record["image"] for record in records])
    labels = np.array([record["label"] for record in records], np.int32)
    return images, labels


def prepare(
    name: IdxDataset,
    raw_dir: os.PathLike | None = None,
    data_dir: os.PathLike | None = None,
) -> None:
    """Makes the TFDS data set from its original files, checksums verified.

    Args:
      name: of the TFDS data set.
      raw_dir: folder with the four original `.gz` files; None downloads them.
      data_dir: where TFDS keeps its data; default: its own default.

    Raises:
      FileNotFoundError: if a file is missing from `raw_dir`.
      ConnectionError: if there is neither `raw_dir` nor a network.
      ValueError: if a file is truncated or not the original one. Nothing is left behind
        in any of these cases.
    """
    builder = _builder(name, data_dir)
    if raw_dir is not None:
        raw_dir = pathlib.Path(raw_dir).resolve()
        wanted = sorted(pathlib.PurePosixPath(url).name for url in builder.url_infos)
        missing = [file for file in wanted if not (raw_dir / file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"`raw_dir` must hold the original files of {name}: {wanted}; missing "
                f"in {raw_dir}: {missing}."
            )
    elif not builder.is_prepared():
        _check_network(next(iter(builder.url_infos)))
    # A download folder of its own: TFDS does not check again what lies in a shared one,
    # and the two sets use the same file names.
    with tempfile.TemporaryDirectory() as downloads:
        try:
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(manual_dir=raw_dir),
            )
        except tfds.download.download_manager.NonMatchingChecksumError as error:
            raise ValueError(
                f"A file of {name} is truncated or not the original one: its size and "
                f"sha256 are not those registered with TFDS. Fetch it again. {error}"
            ) from error


def binarize(images: np.ndarray) -> np.ndarray:
    """uint8 images as `[N, pixels]` of 0 and 1, uint8: ink or no ink."""
    return (images.reshape(len(images), -1) > 127).astype(np.uint8)


def flat(
    name: Dataset, split: Literal["train", "test"], data_dir: os.PathLike | None = None
) -> dict[str, np.ndarray]:
    """A split for a fully connected network.

    Args:
      name: of the TFDS data set.
      split: "train" or "test".
      data_dir: as for `load`.

    Returns:
      `image`, `[N, pixels]` float32 in [0, 1], and `label`, `[N]` int32.
    """
    images, labels = load(name, split, data_dir)
    return {
        "image": images.reshape(len(images), -1).astype(np.float32) / 255,
        "label": labels,
    }


class _FromArrays:
    """Examples of a builder whose splits are arrays of images and labels."""

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Any:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": PIL.Image.fromarray(image), "label": int(label)}


class Digits(_FromArrays, tfds.core.GeneratorBasedBuilder):
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


def _builder(name: Dataset, data_dir: os.PathLike | None) -> Any:
    if name == "digits" and data_dir is None:
        data_dir = _DIGITS
    if name not in get_args(Dataset):
        raise ValueError(f"`name` must be one of {get_args(Dataset)}, got {name!r}.")
    cls = Digits if name == "digits" else _idx_builder(name)
    return cls(data_dir=data_dir, file_format=_FORMAT)


def _idx_builder(name: IdxDataset) -> Any:
    stock = tfds.builder_cls(name)
    files = (("train", "train"), ("test", "t10k"))

    class IdxBuilder(_FromArrays, stock, skip_registration=True):
        name = stock.name
        url_infos = stock.url_infos  # The registered sha256 sums.

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
                for split, prefix in files
            }

    return IdxBuilder


def _check_network(url: str) -> None:
    """Fails at once where TFDS would retry for minutes.

    Raises:
      ConnectionError: if the host of `url` does not answer.
    """
    try:
        urllib.request.urlopen(url, timeout=20).close()
    except OSError as error:
        raise ConnectionError(
            f"Cannot download {url} ({error}). With the original files at hand, give "
            "their folder as `--raw-dir`."
        ) from error
