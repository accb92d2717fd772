"""Prepares TFDS data sets from their original files."""

import dataclasses
import os
import pathlib
import tempfile
import urllib.request
from typing import Any, Literal

import tensorflow_datasets as tfds
import tyro

from experiments.data import datasets, mosaics

Preparable = Literal["mnist", "fashion_mnist", "cifar10"]


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Prepares MNIST, Fashion-MNIST or CIFAR-10 from the original files."""

    name = "prepare"

    dataset: tyro.conf.Positional[Preparable]
    """The data set to prepare."""
    raw_dir: pathlib.Path | None = None
    """The folder with the original files. Without it they are downloaded."""
    data_dir: pathlib.Path | None = None
    """The folder where TFDS keeps its data. The default is that of TFDS."""

    def run(self) -> None:
        prepare(self.dataset, self.raw_dir, self.data_dir)
        images, _ = datasets.load(self.dataset, "train", self.data_dir)
        print(
            f"{self.dataset}: prepared, {len(images)} training images; "
            f"{datasets.origin(self.dataset, self.data_dir)}."
        )


def prepare(
    name: Preparable,
    raw_dir: os.PathLike | None = None,
    data_dir: os.PathLike | None = None,
) -> None:
    """Prepares the TFDS data set from its original files and verifies their checksums.

    If it fails, it leaves no files.

    Args:
      name: the name of the TFDS data set.
      raw_dir: the folder with the original files; None downloads them. For CIFAR-10 it
        may hold mosaics instead (`experiments.data.mosaics`). They have no
        registered checksum, and `origin` describes them.
      data_dir: the folder where TFDS keeps its data; the default is that of TFDS.

    Raises:
      FileNotFoundError: if a file is missing from `raw_dir`.
      ConnectionError: if there is neither `raw_dir` nor a network.
      ValueError: if a file is truncated or not the original one.
    """
    builder = datasets.make_builder(name, data_dir)
    if raw_dir is not None:
        raw_dir = pathlib.Path(raw_dir).resolve()
        if missing := _missing(builder, raw_dir):
            if name != "cifar10" or any(
                not (raw_dir / file).is_file() for file in mosaics.FILES
            ):
                raise FileNotFoundError(missing)
            builder = datasets.make_builder(name, data_dir, raw_dir)
    elif not builder.is_prepared():
        _check_network(next(iter(builder.url_infos)))
    # Each set needs its own download folder. TFDS does not check files again that are
    # already in a shared one, and two sets use the same file names.
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


def _missing(builder: Any, raw_dir: pathlib.Path) -> str:
    """Returns an error message about missing original files, or an empty string."""
    wanted = sorted(pathlib.PurePosixPath(url).name for url in builder.url_infos)
    missing = [file for file in wanted if not (raw_dir / file).is_file()]
    if not missing:
        return ""
    text = (
        f"`raw_dir` must hold the original files of {builder.name}: {wanted}; missing "
        f"in {raw_dir}: {missing}."
    )
    if builder.name == "cifar10":
        text += f" Instead it may hold mosaics, all of {sorted(mosaics.FILES)}."
    return text


def _check_network(url: str) -> None:
    """Raises an error at once if the network is down, where TFDS retries for minutes.

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
