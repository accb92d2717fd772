"""Chooses the examples of each mini-batch, as a function of seed and step alone.

A run that is resumed gets the same batches as one that was not killed.
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
    """Returns the indices of the examples of `steps` mini-batches.

    Args:
      seed: the seed of the run.
      examples: the number of examples in the data set.
      batch_size: the examples of a mini-batch.
      start: the first step.
      steps: the number of steps.
      replacement: True to draw with replacement. Otherwise every epoch has a
        permutation, whose remainder is dropped.
      fixed: True to keep the mini-batches of the first permutation; only their order
        changes from epoch to epoch.

    Returns:
      The indices, `[steps, batch_size]`, int32.

    Raises:
      ValueError: if a batch is larger than the data set, or both `replacement` and
        `fixed` are True.
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
