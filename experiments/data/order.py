"""The order of records: shards in random order, with their records shuffled.

The sixth change of the paper's Section 4.2.1 is to shuffle examples within the shards.
Then the same examples are not always in one mini-batch. In the paper this adds about
1 % of validation accuracy.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Order(Sequence):
    """The order of all records of a split, epoch after epoch, as indices.

    Several shards are read at a time, and each next record comes from a random one of
    them. The order of an epoch is a function of seed and epoch, and is the same in
    every process.

    Raises:
      ValueError: if an argument is wrong; the message says what it must be.

    Example:
      >>> order = Order((3, 3), seed=3, epochs=1, shards_at_once=1, within_shards=False)
      >>> list(order)  # The second shard, then the first.
      [3, 4, 5, 0, 1, 2]
    """

    shard_lengths: tuple[int, ...]
    """The number of records in each shard."""
    seed: int
    """The seed of the order."""
    epochs: int
    """The number of epochs after which the order ends."""
    shards_at_once: int = 16
    """The number of shards that are read together. With all of them, any two records
    can be in one mini-batch. With few, reading stays local."""
    within_shards: bool = True
    """Shuffle the records of each shard. Otherwise they keep the stored order."""

    def __post_init__(self) -> None:
        for name, value in (
            ("shard_lengths", min(self.shard_lengths, default=0)),
            ("epochs", self.epochs),
            ("shards_at_once", self.shards_at_once),
        ):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")

    def __len__(self) -> int:
        return self.epochs * sum(self.shard_lengths)

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < len(self):
            raise IndexError(position)
        epoch, place = divmod(position, sum(self.shard_lengths))
        return int(_of_epoch(self, epoch)[place])


@functools.lru_cache(maxsize=2)  # Two epochs may be read at the same time.
def _of_epoch(order: Order, epoch: int) -> np.ndarray:
    rng = np.random.default_rng((order.seed, epoch))
    starts = np.concatenate([[0], np.cumsum(order.shard_lengths)])
    shards = rng.permutation(len(order.shard_lengths))
    merged = []
    for first in range(0, len(shards), order.shards_at_once):
        together = shards[first : first + order.shards_at_once]
        lengths = [order.shard_lengths[shard] for shard in together]
        turns = rng.permutation(np.repeat(together, lengths))
        records = np.empty(len(turns), np.int64)
        for shard, length in zip(together, lengths, strict=True):
            own = rng.permutation(length) if order.within_shards else np.arange(length)
            records[turns == shard] = starts[shard] + own
        merged.append(records)
    return np.concatenate(merged)
