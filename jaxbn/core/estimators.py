"""Estimators of the population's statistics, in the manner of optax: pure functions.

An estimator is a tuple of three functions: `init` makes its state, `update` moves it by
the moments of one batch, `estimate` reads mean and variance from it. Of the four here,
the state is or begins with that estimate, so that inference, checkpoints and Flax find
`mean` and `var` where they always are.

  >>> estimator = debiased(momentum=0.75)
  >>> ones = jnp.ones(1)
  >>> moments = moments_lib.Moments(count=2 * ones, mean=ones, var=ones)
  >>> state = estimator.update(estimator.init(1, jnp.float32), moments)
  >>> estimator.estimate(state)  # The first batch's own, with m / (m - 1).
  BatchStats(mean=Array([1.], dtype=float32), var=Array([2.], dtype=float32))

A batch that says nothing of a channel (fewer than two values, or moments that are not
finite) leaves the state of that channel as it is, in each of them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxbn.core import moments as moments_lib
from jaxbn.core import reduction, running

Shape = int | Sequence[int]


class Estimator(NamedTuple):
    """How running statistics follow the batches."""

    init: Callable[[Shape, jax.typing.DTypeLike], Any]
    """State before the first batch, for a shape of channels and a dtype."""
    update: Callable[[Any, moments_lib.Moments], Any]
    """State after a batch, same shapes and dtypes; without a gradient."""
    estimate: Callable[[Any], running.BatchStats]
    """The statistics that inference uses."""


class Weighted(NamedTuple):
    """State of an average, and the weight of the batches in it."""

    mean: jax.Array
    var: jax.Array
    weight: jax.Array  # [C]; 0 before the first batch


class Window(NamedTuple):
    """State of an average over the last k batches."""

    mean: jax.Array
    var: jax.Array
    batches: jax.Array  # [C], int32; how many there were
    means: jax.Array  # [k, C]; batch i stands in row i % k
    variances: jax.Array  # [k, C]


def ema(momentum: jax.typing.ArrayLike = 0.99, unbiased: bool = True) -> Estimator:
    """The exponential moving average from mean 0 and variance 1, as in Flax.

    Args:
      momentum: weight of the OLD value, in [0, 1].
      unbiased: move the variance towards `var * m / (m - 1)`, m counting the batch.

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Section 3.1.
    """
    update = functools.partial(
        running.update_batch_stats, momentum=momentum, unbiased=unbiased
    )
    return Estimator(running.init_batch_stats, update, lambda state: state)


def debiased(momentum: jax.typing.ArrayLike = 0.99, unbiased: bool = True) -> Estimator:
    """The exponential average of the batches alone, right from the first of them.

    `sum_i w_i batch_i / sum_i w_i`, `w_i = momentum^(t - i)`: nothing is left of the
    initial mean and variance.

    Args:
      momentum: weight of the OLD value, in [0, 1].
      unbiased: average `var * m / (m - 1)` instead of `var`.

    References:
      Kingma and Ba, arXiv:1412.6980, Section 3.
    """
    update = functools.partial(
        _update_weighted, decay=momentum, gain=1 - momentum, unbiased=unbiased
    )
    return Estimator(_init_weighted, update, _first_two)


def cumulative(unbiased: bool = True) -> Estimator:
    """The average over all batches, each with the same weight.

    PyTorch's `momentum=None`.

    Args:
      unbiased: average `var * m / (m - 1)` instead of `var`.

    References:
      Wu and Johnson, arXiv:2105.07576, Section 3.
    """
    update = functools.partial(_update_weighted, decay=1.0, gain=1.0, unbiased=unbiased)
    return Estimator(_init_weighted, update, _first_two)


def window(batches: int = 100, unbiased: bool = True) -> Estimator:
    """The average over the last batches, each with the same weight.

    Args:
      batches: how many; their statistics are kept, `[batches, C]` twice.
      unbiased: average `var * m / (m - 1)` instead of `var`.

    Raises:
      ValueError: if `batches` is not at least 1.
    """
    if batches < 1:
        raise ValueError(f"`batches` must be at least 1, got {batches}.")
    init = functools.partial(_init_window, batches)
    update = functools.partial(_update_window, unbiased=unbiased)
    return Estimator(init, update, _first_two)


NAMES = ("ema", "debiased", "cumulative", "window")
Name = Literal["ema", "debiased", "cumulative", "window"]


def named(name: Name, momentum: jax.typing.ArrayLike, unbiased: bool) -> Estimator:
    """One of `NAMES`; those that average over batches alike have no momentum."""
    if name == "ema":
        return ema(momentum, unbiased)
    if name == "debiased":
        return debiased(momentum, unbiased)
    return cumulative(unbiased) if name == "cumulative" else window(unbiased=unbiased)


def _first_two(state: Weighted | Window) -> running.BatchStats:
    return running.BatchStats(state.mean, state.var)


def _init_weighted(shape: Shape, dtype: jax.typing.DTypeLike) -> Weighted:
    mean, var = running.init_batch_stats(shape, dtype)
    # Of half precision it would stop growing at 256.
    weight = jnp.zeros_like(var, reduction.reduction_dtype(var.dtype))
    return Weighted(mean, var, weight)


def _update_weighted(
    state: Weighted,
    moments: moments_lib.Moments,
    *,
    decay: jax.typing.ArrayLike,
    gain: jax.typing.ArrayLike,
    unbiased: bool,
) -> Weighted:
    old = _first_two(state)
    batch, count = running.of_batch(old, moments, unbiased)
    usable = running.is_usable(batch, count)
    weight = jnp.asarray(decay * state.weight + gain, state.weight.dtype)
    # Of a momentum of 1 the weight stays 0, and the state what it is.
    share = jnp.where(weight > 0, gain / jnp.where(weight > 0, weight, 1), 0)

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.asarray((1 - share) * old + share * new, old.dtype)

    mean, var = jax.tree.map(move, old, batch)
    new = Weighted(mean, var, weight)
    kept = jax.tree.map(lambda n, old: jnp.where(usable, n, old), new, state)
    return jax.lax.stop_gradient(kept)


def _init_window(batches: int, shape: Shape, dtype: jax.typing.DTypeLike) -> Window:
    mean, var = running.init_batch_stats(shape, dtype)

    def rows(array: jax.Array) -> jax.Array:
        return jnp.zeros((batches, *array.shape), array.dtype)

    none = jnp.zeros(mean.shape, jnp.int32)
    return Window(mean, var, none, rows(mean), rows(var))


def _update_window(
    state: Window, moments: moments_lib.Moments, *, unbiased: bool
) -> Window:
    old = _first_two(state)
    batch, count = running.of_batch(old, moments, unbiased)
    usable = running.is_usable(batch, count)
    size = len(state.means)
    places = jnp.expand_dims(jnp.arange(size), range(1, state.means.ndim))
    written = usable[None] & (places == (state.batches % size)[None])
    batches = state.batches + usable
    # Rows that no batch was written into are 0.
    filled = jnp.maximum(jnp.minimum(batches, size), 1)

    def average(rows: jax.Array, new: jax.Array, old: jax.Array):
        rows = jnp.where(written, jnp.asarray(new, rows.dtype)[None], rows)
        # Divided first: a sum could overflow where the average does not.
        mean = jnp.sum(rows / filled.astype(old.real.dtype)[None], 0)
        return rows, jnp.where(usable, mean, old).astype(old.dtype)

    means, mean = average(state.means, batch.mean, old.mean)
    variances, var = average(state.variances, batch.var, old.var)
    return jax.lax.stop_gradient(Window(mean, var, batches, means, variances))
