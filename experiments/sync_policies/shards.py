"""A data set in one shard per worker, of which each draws its own examples."""

from collections.abc import Mapping

import jax
import numpy as np


def split(
    data: Mapping[str, np.ndarray], workers: int, by_label: bool
) -> dict[str, np.ndarray]:
    """The shards side by side, `[examples of a shard, workers, ...]`.

    Args:
      data: `image` and `label`, `[N, ...]`; what is left over of N is dropped.
      workers: shards.
      by_label: sorted by label before it is split, so that a worker sees one label or
        two; else shuffled.

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
    """Rows of shards as one batch, worker after worker, `[workers * examples, ...]`."""
    return {
        name: array.swapaxes(0, 1).reshape(-1, *array.shape[2:])
        for name, array in batch.items()
    }
