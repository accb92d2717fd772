"""Ghost Batch Normalization: parts of a batch that are normalised apart."""

from typing import Any

from jaxbn import estimators


def ghost(size: int, momentum: float = 0.9, unbiased: bool = True) -> dict[str, Any]:
    """Returns the options of Ghost Batch Normalization, as the paper has it.

    Parts of `size` examples are normalised apart, and the running statistics make one
    step for each part. With `group_size` alone they make one step for the whole batch,
    by the moments of the whole batch. Several passes before one update
    (`jaxbn.accumulate`) make one step. With an `axis_name` the parts are `size`
    devices, as for `group_size`.

    Args:
      size: the number of examples of each part; it must divide the batch.
      momentum: weight of the OLD running statistics in the step of each part. The
        default is the paper's.
      unbiased: as in `jaxbn.batch_norm_train`.

    Returns:
      Options for `batch_norm_train` and for layers.

    Example:
      >>> from jaxbn.linen import BatchNorm
      >>> BatchNorm(**ghost(32)).group_size
      32

    References:
      Hoffer, Hubara and Soudry, Train longer, generalize better, arXiv:1705.08741,
      Algorithm 1.
    """
    estimator = estimators.ema(momentum, unbiased, per_group=True)
    return {"group_size": size, "estimator": estimator}
