"""Several forward passes before one update of the running statistics.

The moments of the passes are merged exactly, by their counts. The running statistics
are updated once, by the merged moments.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbn.core import moments as moments_lib
from jaxbn.core import reduction, running
from jaxbn.core.estimators import Estimator, Shape


class Passes(NamedTuple):
    """The result of some passes."""

    state: Any  # The state of the estimator before the first pass.
    moments: moments_lib.Moments  # The moments of all passes together, [C].
    moved: Any  # The state after one update by these moments.


@dataclasses.dataclass(frozen=True)
class Accumulating:
    """An estimator that merges moments, and updates another one by those of all passes.

    Example:
      >>> from jaxbn.core import estimators
      >>> collect = Accumulating(estimators.cumulative(unbiased=False))
      >>> passes = collect.init(1, jnp.float32)
      >>> for value in (1.0, 3.0):
      ...     moments = moments_lib.Moments(*jnp.array([[4.0], [value], [0.0]]))
      ...     passes = collect.update(passes, moments)
      >>> passes.moved.mean, passes.moved.var, passes.moved.weight
      (Array([2.], dtype=float32), Array([1.], dtype=float32), Array([1.], dtype=float32))
    """  # noqa: E501

    estimator: Estimator

    def init(self, shape: Shape, dtype: jax.typing.DTypeLike) -> Passes:
        """Returns the `Passes` before the first pass, from a new state."""
        return before_the_first(self.estimator, self.estimator.init(shape, dtype))

    def update(self, state: Passes, moments: moments_lib.Moments) -> Passes:
        """Returns the `Passes` after one more pass."""
        moments = moments_lib.merge_moments(state.moments, moments)
        # Shapes, dtypes and shardings stay, so that `lax.scan` can carry the result.
        moments = jax.tree.map(
            lambda new, old: jnp.asarray(reduction.split_as(new, old), old.dtype),
            moments,
            state.moments,
        )
        moments = jax.lax.stop_gradient(moments)
        moved = self.estimator.update(state.state, moments)
        return Passes(state.state, moments, moved)

    def estimate(self, state: Passes) -> running.BatchStats:
        """Returns the statistics before the first pass, which inference uses."""
        return self.estimator.estimate(state.state)


def before_the_first(estimator: Estimator, state: Any) -> Passes:
    """Returns the `Passes` before the first pass, from a state of the estimator."""
    return Passes(state, no_moments(estimator.estimate(state)), state)


def no_moments(stats: running.BatchStats) -> moments_lib.Moments:
    """Returns moments of count 0 for these channels, in float32 or wider."""
    real, mean = (
        jnp.zeros_like(part, reduction.reduction_dtype(part.dtype))
        for part in (stats.var, stats.mean)
    )
    return moments_lib.Moments(real, mean, real, mean)
