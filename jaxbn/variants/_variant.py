"""The interface of variants."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._core.call import Call, Normalized

State = dict[str, jax.Array]
"""The state of one layer, as a dict of arrays. They are kept beside the running mean
and variance, so their names must not be those of arrays of an estimator."""


class Variant:
    """A relative of Batch Normalization; by itself it is Batch Normalization.

    A subclass changes how a batch is normalised in training (`normalize`), or in
    inference (`infer`), or both. A variant is static under jit, so it must be hashable,
    and equal objects must be the same variant. A frozen dataclass is both.

    Example:
      This variant normalises by the mean of the batch and the running variance.

      >>> import dataclasses
      >>> @dataclasses.dataclass(frozen=True)
      ... class MeanOnly(Variant):
      ...     def normalize(self, call, state):
      ...         moments = call.moments()
      ...         y = call.by_statistics(moments.mean, call.running_var)
      ...         return Normalized(y, moments, state)
    """

    infer: Any = None
    """A method of the arguments `normalize` has; it returns the output in inference.
    None means the running statistics. In inference the call has no axis name."""

    subtracts_mean: bool = True
    """False if the output is not centred. The running variance is then never multiplied
    by m / (m - 1), whatever `unbiased` says."""

    needs_factors: bool = False
    """True if `normalize` needs `call.factors` in every call of `ConvBatchNorm`."""

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> dict[str, Any]:
        """Returns the first state of a layer; empty if the variant needs none.

        Floating-point arrays begin as zeros, because `jaxbn.reset_batch_stats` resets
        them to zeros. `sent` and `received` are messages from the backward pass to the
        next step; `jaxbn/sync/_exchange.py` explains them.

        Args:
          shape: the shape of the channels.
          dtype: the dtype of the moments.
        """
        del shape, dtype
        return {}

    def normalize(self, call: Call, state: State) -> Normalized:
        """Returns the output of a layer in training, its moments and the new state.

        Args:
          call: the arguments of the call, with methods that normalise them.
          state: the state of this layer. The new state must have the same structure
            and shapes.
        """
        return Normalized(*call.by_options(), state)


def next_step(steps: jax.Array, usable: jax.Array) -> jax.Array:
    """Returns the number of steps after one more; a batch that is not usable is none.

    The counter stops before it would overflow.
    """
    last = jnp.iinfo(steps.dtype).max
    return jnp.where(usable, jnp.minimum(steps, last - 1) + 1, steps)
