"""Inference by running statistics mixed with those of each example."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxbn._core import moments as moments_lib
from jaxbn._core.call import Call
from jaxbn._core.moments import Moments
from jaxbn.variants._variant import State, Variant


@dataclasses.dataclass(frozen=True)
class ExampleWeighting(Variant):
    """Inference as if each example were a part of its batch, as it is in training.

        mean = (1 - w) * mean + w * mean_i
        var  = (1 - w) * var + w * var_i + w * (1 - w) * |mean_i - mean|^2

    `mean_i` and `var_i` are the moments of example i over its positions, such as the
    pixels. Training stays plain Batch Normalization, so the variant can be given to a
    trained model. Choose the weight on a validation set. For a batch of N examples in
    training, 1 / N is the conditional expectation, if the running variance averages
    biased variances (`unbiased=False`).

    Attributes:
      weight: w, the weight of the example, in [0, 1].

    Raises:
      ValueError: if `weight` is outside [0, 1].

    Example:
      >>> import jaxbn
      >>> stats = jaxbn.BatchStats(jnp.array([0.0]), jnp.array([1.0]))
      >>> x = jnp.array([[[1.0], [3.0]]])  # One example of two positions.
      >>> variant = ExampleWeighting(1.0)
      >>> y = jaxbn.batch_norm_inference(x, None, None, stats, variant=variant)
      >>> y.round(2).ravel()
      Array([-1.,  1.], dtype=float32)

    References:
      Singh and Shrivastava, EvalNorm, arXiv:1904.06031. Summers and Dinneen, Four
      Things Everyone Should Know to Improve Batch Normalization, arXiv:1906.03548,
      Section 3.1. Both have this formula.
    """

    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"`weight` must lie in [0, 1], got {self.weight}.")

    def infer(self, call: Call, state: State) -> jax.Array:
        """Normalises every example by its own mixed statistics."""
        del state

        def merge(own: Moments) -> tuple[Moments, None]:
            # An example without a valid element has no statistics.
            share = jnp.where(own.count > 0, self.weight, 0)
            delta = (own.mean - call.running_mean[None]) + own.tail
            spread = own.var + (1 - share) * moments_lib.abs_square(delta)
            mean = call.running_mean[None] + share * delta
            var = (1 - share) * call.running_var[None] + share * spread
            return own._replace(mean=mean, var=var), None

        return call._replace(examples=1).by(merge)[0]
