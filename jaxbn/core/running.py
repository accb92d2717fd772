"""The population estimate: running statistics, and how a batch moves them.

    mean <- momentum * mean + (1 - momentum) * batch_mean
    var  <- momentum * var  + (1 - momentum) * batch_var * m / (m - 1)

`m` counts the elements of the global batch. The factor m / (m - 1) is the paper's
(Algorithm 2, step 10) and PyTorch's; Flax leaves it out (`unbiased=False`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbn.core import moments as moments_lib
from jaxbn.core import reduction


class BatchStats(NamedTuple):
    """Estimate of the population's mean and variance, per channel."""

    mean: jax.Array  # [C], float32; complex64 for complex inputs
    var: jax.Array  # [C], float32


def init_batch_stats(
    shape: int | Sequence[int],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> BatchStats:
    """Returns mean 0 and variance 1, as in Flax.

    Args:
      shape: the shape of the channels: `C`, `(C,)`, or one size per channel axis.
      dtype: the dtype of the mean; the variance has the real dtype that belongs to it.

    Returns:
      `BatchStats` of the given shape.

    Example:
      >>> init_batch_stats(2).var
      Array([1., 1.], dtype=float32)
    """
    return BatchStats(jnp.zeros(shape, dtype), jnp.ones(shape, jnp.finfo(dtype).dtype))


def update_batch_stats(
    batch_stats: BatchStats,
    moments: moments_lib.Moments,
    *,
    momentum: jax.typing.ArrayLike,
    unbiased: bool = True,
) -> BatchStats:
    """Moves the running statistics towards the moments of one global batch.

    A channel keeps its old statistics where the batch has fewer than two values for it,
    or where its moments are not finite. No gradient flows through the result.

    Args:
      batch_stats: current statistics, `[C]` each.
      moments: moments of the global batch, `[C]` each.
      momentum: weight of the OLD value, in [0, 1].
      unbiased: estimate the population's variance, `var * m / (m - 1)`.

    Returns:
      New `BatchStats` of the same shapes and dtypes.

    Example:
      >>> ones = jnp.ones(1)
      >>> moments = moments_lib.Moments(count=2 * ones, mean=ones, var=ones)
      >>> update_batch_stats(init_batch_stats(1), moments, momentum=0.75)
      BatchStats(mean=Array([0.25], dtype=float32), var=Array([1.25], dtype=float32))

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Section 3.1 and Algorithm 2.
    """
    batch, count = of_batch(batch_stats, moments, unbiased)

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.asarray(momentum * old + (1 - momentum) * new, old.dtype)

    new = jax.tree.map(move, batch_stats, batch)
    usable = is_usable(new, count)
    kept = jax.tree.map(lambda n, old: jnp.where(usable, n, old), new, batch_stats)
    return jax.lax.stop_gradient(kept)


def of_batch(
    batch_stats: BatchStats, moments: moments_lib.Moments, unbiased: bool
) -> tuple[BatchStats, jax.Array]:
    """Returns one batch's estimate of the population, and its elements per channel.

    Args:
      batch_stats: current statistics. On a mesh of Explicit axes the result is split as
        they are.
      moments: moments of the global batch, `[C]` each.
      unbiased: estimate the population's variance, `var * m / (m - 1)`.

    Returns:
      The estimate and the count, `[C]` each.
    """
    count, mean, var, _ = moments
    if unbiased:
        var = var * (count / jnp.maximum(count - 1, 1))
    batch = jax.tree.map(reduction.split_as, BatchStats(mean, var), batch_stats)
    return batch, reduction.split_as(count, batch_stats.var)


def is_usable(stats: BatchStats, count: jax.Array) -> jax.Array:
    """Returns where the count is at least two and the statistics are finite, `[C]`."""
    return (count > 1) & jnp.isfinite(stats.mean) & jnp.isfinite(stats.var)
