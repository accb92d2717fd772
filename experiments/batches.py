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
    fixed: bool = False,
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
      fixed: the same examples always come together, in the mini-batches of the first
        permutation; only their order changes from epoch to epoch.

    Returns:
      `[steps, batch_size]`, int32.

    Raises:
      ValueError: if a batch is larger than the data set, or mini-batches shall be both
        fixed and drawn with replacement.
    """
    if replacement and fixed:
        raise ValueError("`replacement` and `fixed` must not both be True.")
    per_epoch = examples // batch_size
    if per_epoch < 1:
        raise ValueError(
            f"`batch_size` must be at most the {examples} training images, got "
            f"{batch_size}."
        )
    used = per_epoch * batch_size

    def epoch(number: int) -> np.ndarray:
        rng = np.random.default_rng((seed, number))
        if fixed:
            first = np.random.default_rng((seed, 0)).permutation(examples)[:used]
            return first.reshape(per_epoch, batch_size)[rng.permutation(per_epoch)]
        order = (
            rng.integers(examples, size=used)
            if replacement
            else rng.permutation(examples)[:used]
        )
        return order.reshape(per_epoch, batch_size)

    first, last = start // per_epoch, (start + steps - 1) // per_epoch
    batches = np.concatenate([epoch(number) for number in range(first, last + 1)])
    return batches[start - first * per_epoch :][:steps].astype(np.int32)
