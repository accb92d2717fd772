"""Which examples make which mini-batch: a function of seed and step alone.

So that a run that was resumed sees the batches that it would have seen.
"""

import numpy as np


def indices(
    seed: int,
    examples: int,
    batch_size: int,
    start: int,
    steps: int,
    *,
    replacement: bool = False,
    reshuffle: bool = True,
) -> np.ndarray:
    """Of the mini-batches `start` to `start + steps`.

    Args:
      seed: of the run.
      examples: in the data set.
      batch_size: of each mini-batch.
      start: the first step.
      steps: how many.
      replacement: draw with replacement; else one permutation per epoch, whose
        remainder is dropped.
      reshuffle: draw anew for each epoch; else every epoch has the mini-batches of the
        first.

    Returns:
      `[steps, batch_size]`, int32.

    Raises:
      ValueError: if a batch is larger than the data set.
    """
    per_epoch = examples // batch_size
    if per_epoch < 1:
        raise ValueError(
            f"`batch_size` must be at most the {examples} training images, got "
            f"{batch_size}."
        )
    used = per_epoch * batch_size

    def epoch(number: int) -> np.ndarray:
        rng = np.random.default_rng((seed, number if reshuffle else 0))
        order = (
            rng.integers(examples, size=used)
            if replacement
            else rng.permutation(examples)[:used]
        )
        return order.reshape(per_epoch, batch_size)

    first, last = start // per_epoch, (start + steps - 1) // per_epoch
    batches = np.concatenate([epoch(number) for number in range(first, last + 1)])
    return batches[start - first * per_epoch :][:steps].astype(np.int32)
