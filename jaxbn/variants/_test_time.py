"""Inference by the statistics of the test batch."""

import dataclasses
import math
from typing import Any

import jax

from jaxbn._core import reduction
from jaxbn._core.call import Call
from jaxbn.variants._variant import State, Variant


@dataclasses.dataclass(frozen=True)
class TestTime(Variant):
    """Inference by the statistics of the test batch, mixed with the running ones.

        mean = (prior * mean + n * mean_batch) / (prior + n)
        var  = (prior * var + n * var_batch) / (prior + n)

    n is the number of examples of the batch. It helps where the test data differ from
    the training data, for instance by noise or blur, and harms where the batch is not
    a fair sample, for instance of one class. Training stays plain Batch Normalization.
    `with_variant` gives it to a trained model.

    Attributes:
      prior: the number of examples as which the running statistics count. 0 takes the
        statistics of the batch alone.
      axis_name: axis, or tuple of axes, over which the test batch is split.

    Raises:
      ValueError: if `prior` is negative.

    Example:
      >>> import jaxbn, jax.numpy as jnp
      >>> stats = jaxbn.BatchStats(jnp.array([0.0]), jnp.array([1.0]))
      >>> x = jnp.array([[8.0], [12.0]])
      >>> jaxbn.batch_norm_inference(x, None, None, stats, variant=TestTime()).round(3)
      Array([[-1.],
             [ 1.]], dtype=float32)

    References:
      Nado et al., Evaluating Prediction-Time Batch Normalization, arXiv:2006.10963, for
      a prior of 0. Schneider et al., Improving robustness against common corruptions by
      covariate shift adaptation, arXiv:2006.16971, for others.
    """

    __test__ = False  # pytest would take the class for a test.

    prior: float = 0.0
    axis_name: Any = None

    def __post_init__(self) -> None:
        if not self.prior >= 0:
            raise ValueError(f"`prior` must be at least 0, got {self.prior}.")

    def infer(self, call: Call, state: State) -> jax.Array:
        """Normalises by the mixed statistics; the gradient flows through them."""
        del state
        call = call.over(self.axis_name)
        if self.prior == 0:
            return call.by_options()[0]
        found = call.moments()
        axes = reduction.reduction_axes(call.x.ndim, call.settings.feature_axes)
        positions = math.prod(call.x.shape[a] for a in axes if a != call.axis)
        examples = found.count / positions
        share = examples / (self.prior + examples)
        delta = (found.mean - call.running_mean) + found.tail
        mean = call.running_mean + share * delta
        var = call.running_var + share * (found.var - call.running_var)
        return call.by_statistics(mean, var)
