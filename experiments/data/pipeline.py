"""Makes mini-batches from records, and copies them to devices ahead of their step."""

import dataclasses
import functools
from typing import Any

import grain
import jax
import numpy as np

from experiments.data import augmentation, order, source


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the batches; `batch_size` is that of all processes together."""

    batch_size: int
    """The number of images in a mini-batch of all processes together."""
    size: int = 224
    """The side of the network's input in pixels."""
    area: tuple[float, float] = (0.08, 1.0)
    """The least and the greatest share of an image's area in a random crop."""
    photometric: float = 0.2
    """The strength of the photometric distortions; .5 is the full strength."""
    shards_at_once: int = 16
    """The number of shards whose records are mixed."""
    within_shards: bool = True
    """Shuffle the records within each shard."""
    threads: int = 16
    """The number of threads that read and decode."""
    read_ahead: int = 500
    """The number of images that are decoded before they are needed."""


@dataclasses.dataclass(frozen=True)
class Process:
    """The index of this process and the number of all; see `jax.process_index()`."""

    index: int = 0
    count: int = 1


def training(
    split: source.Source,
    options: Options,
    seed: int,
    epochs: int,
    process: Process = Process(),
) -> grain.IterDataset:
    """Returns batches of images that are cropped, mirrored and distorted at random.

    The batches of all processes together have the same images with the same distortions
    for any number of processes. Each process reads only its own images.

    Args:
      split: a split of a prepared data set.
      options: the options of the batches.
      seed: the seed of order, crops and distortions.
      epochs: the number of epochs. A remainder that does not fill a batch is dropped
        once, at the end.
      process: the index of this process and the number of all.

    Returns:
      Batches with `image`, `[b, size, size, 3]` uint8, and `label`, `[b]` int32. Their
      iterator has `get_state()` and `set_state(state)`; a state is a small dictionary.
      The same state gives the same next batches.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    _check(options, process)
    records = order.Order(
        split.shard_lengths,
        seed,
        epochs,
        shards_at_once=options.shards_at_once,
        within_shards=options.within_shards,
    )

    def load(index: int, rng: np.random.Generator) -> dict[str, Any]:
        record = split.records[index]
        image = source.decode(record["image"])
        image = augmentation.random_resized(rng, image, options.size, options.area)
        image = augmentation.mirror(rng, image)
        image = augmentation.photometric(rng, image, options.photometric)
        return {"image": image, "label": np.int32(record["label"])}

    # Images are sliced after `random_map`, so that the generators depend on the place
    # among all images.
    images = grain.MapDataset.source(records).seed(seed).random_map(load)
    return _batches(images, options, process)


def evaluation(
    split: source.Source,
    options: Options,
    process: Process = Process(),
) -> grain.IterDataset:
    """Returns batches with the middle of every image once, in the order of the files.

    Args:
      split: a split of a prepared data set.
      options: the options of the batches.
      process: the index of this process and the number of all.

    Returns:
      Batches with `image` and `label` as in `training`, and `mask`, `[b]`. The mask is
      False for the images that fill up the last batch.

    Raises:
      ValueError: as in `training`.
    """
    _check(options, process)
    count = sum(split.shard_lengths)
    batches = -(-count // options.batch_size)

    def load(index: int) -> dict[str, Any]:
        if index >= count:
            empty = np.zeros((options.size, options.size, 3), np.uint8)
            return {"image": empty, "label": np.int32(0), "mask": np.bool_(False)}
        record = split.records[index]
        image = augmentation.central(source.decode(record["image"]), options.size)
        label = np.int32(record["label"])
        return {"image": image, "label": label, "mask": np.bool_(True)}

    images = grain.MapDataset.range(batches * options.batch_size).map(load)
    return _batches(images, options, process)


def put(
    batches: grain.IterDataset, sharding: jax.sharding.Sharding, ahead: int = 2
) -> grain.IterDataset:
    """Returns the batches of all processes as global arrays.

    Batches are copied to the devices while a step runs.

    Args:
      batches: the batches of this process, from `pipeline`.
      sharding: the sharding of the global batches, such as
        `NamedSharding(mesh, PartitionSpec("data"))`.
      ahead: the number of batches that wait on the devices for their step.

    Returns:
      The batches with `jax.Array`. A state of their iterator counts the batches that
      were taken, not those that wait.
    """
    place = functools.partial(jax.make_array_from_process_local_data, sharding)
    placed = batches.map(functools.partial(jax.tree.map, place))
    return grain.experimental.ThreadPrefetchIterDataset(
        placed, prefetch_buffer_size=ahead
    )


def _batches(
    images: grain.MapDataset, options: Options, process: Process
) -> grain.IterDataset:
    own = images[process.index :: process.count]
    own = own.batch(options.batch_size // process.count, drop_remainder=True)
    ahead = max(1, options.read_ahead * process.count // options.batch_size)
    return own.to_iter_dataset(
        grain.ReadOptions(num_threads=options.threads, prefetch_buffer_size=ahead)
    )


def _check(options: Options, process: Process) -> None:
    for name in ("batch_size", "size", "threads", "read_ahead"):
        if getattr(options, name) < 1:
            raise ValueError(
                f"`{name}` must be at least 1, got {getattr(options, name)}."
            )
    if not 0 < options.area[0] <= options.area[1] <= 1:
        raise ValueError(
            "`area` must be two shares of the image, the lesser first, got "
            f"{options.area}."
        )
    if not 0 <= options.photometric <= 1:
        raise ValueError(
            f"`photometric` must lie in [0, 1], got {options.photometric}."
        )
    if not 0 <= process.index < process.count:
        raise ValueError(
            f"`process.index` must be less than the {process.count} processes, got "
            f"{process.index}."
        )
    if options.batch_size % process.count:
        raise ValueError(
            f"`batch_size` must be a multiple of the {process.count} processes, got "
            f"{options.batch_size}."
        )
