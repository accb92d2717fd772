"""Several forward passes, one update of the running statistics.

The moments of the passes are merged by their counts, exactly, and the running
statistics move once, by the moments of the whole.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbn.core import moments as moments_lib
from jaxbn.core import reduction
from jaxbn.core.estimators import Estimator


class Passes(NamedTuple):
    """What is known after some passes."""

    state: Any  # Of the estimator, before the first of them.
    moments: moments_lib.Moments  # Of all of them together, [C] each.
    moved: Any  # The state after one update by these moments.


def accumulating(estimator: Estimator) -> Estimator:
    """The estimator that merges moments, and moves `estimator` by those of all passes.

    Example:
      >>> from jaxbn.core import estimators
      >>> collect = accumulating(estimators.cumulative(unbiased=False))
      >>> passes = collect.init(1, jnp.float32)
      >>> for value in (1.0, 3.0):
      ...     moments = moments_lib.Moments(*jnp.array([[4.0], [value], [0.0]]))
      ...     passes = collect.update(passes, moments)
      >>> passes.moved.mean, passes.moved.var, passes.moved.weight
      (Array([2.], dtype=float32), Array([1.], dtype=float32), Array([1.], dtype=float32))
    """  # noqa: E501

    def init(shape, dtype) -> Passes:
        return before_the_first(estimator, estimator.init(shape, dtype))

    def update(passes: Passes, moments: moments_lib.Moments) -> Passes:
        moments = moments_lib.merge_moments(passes.moments, moments)
        # The shapes, dtypes and shardings of before, so that `lax.scan` can carry it.
        moments = jax.tree.map(
            lambda new, old: jnp.asarray(reduction.split_as(new, old), old.dtype),
            moments,
            passes.moments,
        )
        moments = jax.lax.stop_gradient(moments)
        return Passes(passes.state, moments, estimator.update(passes.state, moments))

    return Estimator(init, update, lambda passes: estimator.estimate(passes.state))


def before_the_first(estimator: Estimator, state: Any) -> Passes:
    """No pass yet, from a state of the estimator."""
    stats = estimator.estimate(state)
    real, mean = (
        jnp.zeros_like(part, reduction.reduction_dtype(part.dtype))
        for part in (stats.var, stats.mean)
    )
    return Passes(state, moments_lib.Moments(real, mean, real, mean), state)
