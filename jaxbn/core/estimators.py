"""Estimators of the population's statistics, in the manner of optax: pure functions.

An estimator is a tuple of three functions: `init` makes its state, `update` moves it by
the moments of one batch, `estimate` reads mean and variance from it.

  >>> import jax.numpy as jnp
  >>> estimator = ema(momentum=0.75)
  >>> ones = jnp.ones(1)
  >>> moments = moments_lib.Moments(count=2 * ones, mean=ones, var=ones)
  >>> state = estimator.update(estimator.init(1, jnp.float32), moments)
  >>> estimator.estimate(state)
  BatchStats(mean=Array([0.25], dtype=float32), var=Array([1.25], dtype=float32))
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxbn.core import moments as moments_lib
from jaxbn.core import running


class Estimator(NamedTuple):
    """How running statistics follow the batches."""

    init: Callable[[int | Sequence[int], jax.typing.DTypeLike], Any]
    """State before the first batch, for a shape of channels and a dtype."""
    update: Callable[[Any, moments_lib.Moments], Any]
    """State after a batch, same shapes and dtypes; without a gradient."""
    estimate: Callable[[Any], running.BatchStats]
    """The statistics that inference uses."""


def ema(momentum: jax.typing.ArrayLike = 0.99, unbiased: bool = True) -> Estimator:
    """The exponential moving average, whose state is the estimate.

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
