"""Prepared splits of TFDS that are read record by record, without TensorFlow."""

import io
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, cast, get_args

import PIL.Image
import tensorflow_datasets as tfds

from experiments import datasets


class Source(NamedTuple):
    """A split: its records, `image` as encoded bytes, in the order of its files."""

    records: Sequence[dict[str, Any]]
    shard_lengths: tuple[int, ...]  # Records in each file; they sum up to all.
    classes: int


def read(name: str, split: str, data_dir: os.PathLike | None = None) -> Source:
    """A split of a data set that was prepared as ArrayRecord.

    Args:
      name: of the TFDS data set, with features `image` and `label`; `digits` is
        prepared on first use.
      split: such as "train" or "validation".
      data_dir: where TFDS keeps its data; default: its own default.

    Raises:
      FileNotFoundError: if it is not prepared. Never downloads.
      ValueError: if it has no such split, or was prepared in another file format.
    """
    if name in get_args(datasets.Dataset):
        builder = datasets.prepared(cast(Any, name), data_dir)
    else:
        builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"The data set {name!r} is not prepared in {builder.data_path}. Prepare it "
            "as ArrayRecord, as experiments/images/README.md says."
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
    """An encoded image in RGB."""
    return PIL.Image.open(io.BytesIO(content)).convert("RGB")
