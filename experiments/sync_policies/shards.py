"""Splits a data set into one shard per worker, who draws its examples from it."""

from collections.abc import Mapping

import jax
import numpy as np


def split(
    data: Mapping[str, np.ndarray], workers: int, by_label: bool
) -> dict[str, np.ndarray]:
    """Returns the shards side by side, `[examples of a shard, workers, ...]`.

    Args:
      data: `image` and `label`, `[N, ...]`; the remainder of N by `workers` is dropped.
      workers: the number of shards.
      by_label: True sorts the data by label before it is split, so that a worker sees
        one label or two; False shuffles it.

    Raises:
      ValueError: if there are fewer examples than workers.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(data["label"]))
    if by_label:
        order = order[np.argsort(data["label"][order], kind="stable")]
    each = len(order) // workers
    if not each:
        raise ValueError(f"There must be an example for each of {workers} workers.")
    rows = order[: each * workers].reshape(workers, each)
    rows = np.stack([rng.permutation(row) for row in rows], 1)
    return {name: array[rows] for name, array in data.items()}


def as_batch(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Flattens rows of shards to one batch, `[workers * examples, ...]`.

    The examples of one worker come before those of the next.
    """
    return {
        name: array.swapaxes(0, 1).reshape(-1, *array.shape[2:])
        for name, array in batch.items()
    }
