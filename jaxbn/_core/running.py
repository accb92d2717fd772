"""The running statistics of a layer, and one batch's estimate of the population.

An estimate of the population's variance is the variance of the batch times m / (m - 1),
where `m` counts the elements of the global batch. The factor is the paper's (Algorithm
2, step 10) and PyTorch's; Flax leaves it out (`unbiased=False`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._core import moments as moments_lib
from jaxbn._core import reduction, user_warnings

Shape = int | Sequence[int]

MESSAGES = ("sent", "received", "everyone")
"""The entries of a state that are in `BatchStats.sync` also for a variant."""


class BatchStats(NamedTuple):
    """The running statistics of a layer: all that a training call reads and returns.

    Attributes:
      mean: `[C]`, float32; complex64 for complex inputs.
      var: `[C]`, float32.
      extra: further arrays of the estimator by name, such as `weight`. The default
        estimator has none.
      sync: the state of the policy of synchronisation; see `jaxbn.sync.Policy`. Most
        policies have none. Messages that a variant sends are here too.
      variant: the other arrays of a variant, by name; see `jaxbn.variants.Variant`.

    Example:
      >>> batch_stats = BatchStats(mean=jnp.zeros(3), var=jnp.ones(3))
      >>> batch_stats.extra, batch_stats.sync, batch_stats.variant
      ({}, {}, {})
    """

    mean: jax.Array
    var: jax.Array
    extra: Mapping[str, Any] = {}
    sync: Mapping[str, Any] = {}
    variant: Mapping[str, Any] = {}


def new_batch_stats(shape: Shape, dtype: jax.typing.DTypeLike) -> BatchStats:
    """Returns mean 0 and variance 1."""
    return BatchStats(jnp.zeros(shape, dtype), jnp.ones(shape, jnp.finfo(dtype).dtype))


def state_of(batch_stats: BatchStats) -> dict[str, Any]:
    """Returns the state of the policy or variant of a layer, as one dict."""
    return {**batch_stats.variant, **batch_stats.sync}


def with_state(batch_stats: BatchStats, state: Mapping[str, Any]) -> BatchStats:
    """Returns the statistics with a new state of the policy or variant."""
    sync, variant = (
        {name: state[name] for name in old}
        for old in (batch_stats.sync, batch_stats.variant)
    )
    return batch_stats._replace(sync=sync, variant=variant)


def of_batch(
    batch_stats: BatchStats, moments: moments_lib.Moments, unbiased: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns one batch's estimate of the population, and its elements per channel.

    Args:
      batch_stats: current statistics. On a mesh of Explicit axes the result is split as
        they are.
      moments: moments of the global batch, `[C]` each.
      unbiased: estimate the population's variance, `var * m / (m - 1)`.

    Returns:
      Mean, variance and count, `[C]` each. Mean and variance have the precision of the
      statistics, or that of float32 if the statistics have half precision.
    """
    var = moments.var
    if unbiased:
        var = var * (moments.count / jnp.maximum(moments.count - 1, 1))
    real = reduction.reduction_dtype(batch_stats.var.dtype)
    complex_ = np.promote_types(real, np.complex64)
    mean_dtype = complex_ if jnp.iscomplexobj(moments.mean) else real
    return (
        reduction.split_as(moments.mean.astype(mean_dtype), batch_stats.mean),
        reduction.split_as(var.astype(real), batch_stats.var),
        reduction.split_as(moments.count, batch_stats.var),
    )


def is_usable(mean: jax.Array, var: jax.Array, count: jax.Array) -> jax.Array:
    """Returns where the count is at least two and mean and variance are finite."""
    return (count > 1) & jnp.isfinite(mean) & jnp.isfinite(var)


def where_usable(usable: jax.Array, new: BatchStats, old: BatchStats) -> BatchStats:
    """Returns the new statistics of usable channels; no gradient flows through them.

    Arrays `[C, k]` of `extra` have one more axis than `usable`, `[C]`.
    """

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        by_slot = new.ndim > usable.ndim
        return jnp.where(usable[..., None] if by_slot else usable, new, old)

    new, mine = (each._replace(sync={}, variant={}) for each in (new, old))
    kept = jax.lax.stop_gradient(jax.tree.map(choose, new, mine))
    return kept._replace(sync=old.sync, variant=old.variant)


def widened(batch_stats: BatchStats, *, carried: bool = True) -> BatchStats:
    """Returns statistics in which every number has float32 or a wider dtype.

    A moving average stalls in half precision, because an old value plus a small step
    rounds to the old value. Training also returns the statistics in the wide dtype.

    Args:
      batch_stats: running statistics.
      carried: True if a loop or branch that traces this call returns the statistics.

    Raises:
      TypeError: if they have half precision and are carried by `lax.scan` or another
        loop or branch, which cannot return them in another dtype.

    Warns:
      UserWarning: if they have half precision.
    """
    wide = in_wide_dtypes(batch_stats)
    pairs = zip(*map(jax.tree.leaves, (batch_stats, wide)), strict=True)
    dtypes = {
        jnp.result_type(old) for old, new in pairs if jnp.result_type(old) != new.dtype
    }
    if not dtypes:
        return batch_stats
    narrow = ", ".join(sorted(map(str, dtypes)))
    cause = f"The running statistics are {narrow}, in which a moving average stalls"
    remedy = (
        "leave the collection `batch_stats` out where variables are cast, or cast it "
        "back: `jax.tree.map(lambda leaf: leaf.astype(jnp.float32), batch_stats)`"
    )
    if carried and (user_warnings.is_in_loop() or user_warnings.is_in_branch_of_flax()):
        raise TypeError(
            f"{cause}, and a loop or branch such as `lax.scan` cannot return them in "
            f"float32. Before it, {remedy}."
        )
    user_warnings.warn(
        f"{cause}; training returns them in float32. To keep their digits, {remedy}."
    )
    return wide


def in_wide_dtypes(batch_stats: BatchStats) -> BatchStats:
    """Returns statistics in float32 or wider dtypes, without a warning."""
    return jax.tree.map(lambda leaf: reduction.widened(jnp.asarray(leaf)), batch_stats)


def as_complex(estimator: Any, batch_stats: BatchStats) -> BatchStats:
    """Returns the statistics as complex numbers where `init` makes them complex.

    A layer is created before it sees its first input, so its statistics may still be
    real. A checkpoint may hold real ones too.

    Args:
      estimator: the estimator of the layer.
      batch_stats: its statistics.
    """
    like = jax.eval_shape(lambda: estimator.init(1, jnp.complex64))

    def widen(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        return leaf + 0j if jnp.iscomplexobj(like) else leaf

    like = like._replace(sync=batch_stats.sync, variant=batch_stats.variant)
    return jax.tree.map(widen, batch_stats, like)
