"""Pooling of the moments of several batches into one estimate of the population."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxbn.core import moments as moments_lib
from jaxbn.core import running

Pooling = Literal["mean", "pooled"]


def add(
    pooling: Pooling, total: moments_lib.Moments, batch: moments_lib.Moments
) -> moments_lib.Moments:
    """Adds the moments of one batch to the total.

    Channels of the batch that are not finite do not count.

    Args:
      pooling: "mean" averages the means and the unbiased variances, weighted by count.
        "pooled" takes the moments of all elements together.
      total: the moments of the batches before; zeros if there are none.
      batch: the moments of one batch.
    """
    usable = jnp.isfinite(batch.mean) & jnp.isfinite(batch.var)
    batch = jax.tree.map(lambda part: jnp.where(usable, part, 0), batch)
    if pooling == "pooled":
        return moments_lib.merge_moments(total, batch)
    unbiased = batch.var * batch.count / jnp.maximum(batch.count - 1, 1)
    # A batch with one value for a channel has no variance of its own.
    weight = jnp.where(batch.count > 1, batch.count, 0)
    count = total.count + weight
    share = weight / jnp.maximum(count, 1)
    return moments_lib.Moments(
        count,
        total.mean + share * (batch.mean - total.mean),
        total.var + share * (unbiased - total.var),
        total.tail,
    )


def population(
    pooling: Pooling, old: running.BatchStats, total: moments_lib.Moments
) -> running.BatchStats:
    """Returns the estimate from the batches; a channel without one keeps the old."""
    new, count = running.of_batch(old, total, unbiased=pooling == "pooled")
    usable = running.is_usable(new, count)
    # Float32 or wider, and complex after complex batches, whatever the old ones were.
    return jax.tree.map(lambda new, old: jnp.where(usable, new, old), new, old)
