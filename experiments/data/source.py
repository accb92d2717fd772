"""Reads prepared splits of TFDS record by record, without TensorFlow."""

import io
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, cast, get_args

import PIL.Image
import tensorflow_datasets as tfds

from experiments.data import datasets


class Source(NamedTuple):
    """A split, with its records in the order of the files, `image` as encoded bytes."""

    records: Sequence[dict[str, Any]]
    shard_lengths: tuple[int, ...]  # The number of records in each file.
    classes: int


def read(name: str, split: str, data_dir: os.PathLike | None = None) -> Source:
    """Returns a split of a data set that was prepared as ArrayRecord.

    Args:
      name: the name of a TFDS data set with features `image` and `label`; `digits` is
        prepared on first use.
      split: the name of the split, such as "train" or "validation".
      data_dir: the folder where TFDS keeps its data; the default is that of TFDS.

    Raises:
      FileNotFoundError: if the set is not prepared. Nothing is downloaded.
      ValueError: if it has no such split, or was prepared in another file format.
    """
    if name in get_args(datasets.Dataset):
        builder = datasets.prepared(cast(Any, name), data_dir)
    else:
        builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"The data set {name!r} is not prepared in {builder.data_path}. Prepare it "
            "as ArrayRecord, as experiments/data/README.md says."
        )
    if split not in builder.info.splits:
        raise ValueError(
            f"`split` must be one of {sorted(builder.info.splits)}, got {split!r}."
        )
    form = builder.info.file_format
    if form is not tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"The data set {name!r} in {builder.data_path} must be ArrayRecord, got "
            f"{form.value}; prepare it with `file_format='array_record'`."
        )
    records = builder.as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    lengths = tuple(builder.info.splits[split].shard_lengths)
    return Source(records, lengths, builder.info.features["label"].num_classes)


def decode(content: bytes) -> PIL.Image.Image:
    """Decodes an image to RGB."""
    return PIL.Image.open(io.BytesIO(content)).convert("RGB")
