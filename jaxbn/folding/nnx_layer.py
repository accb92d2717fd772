"""The layer that replaces a folded layer in an NNX model."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn import folded


class Folded(nnx.BatchStat):
    """The rest of a scale or a bias: not trained, and split as statistics are."""


class FoldedBatchNorm(nnx.Module):
    """The layer `activation(x * scale + bias + residual)`, called as `BatchNorm` is.

    Args:
      norm: the layer that it replaces, of jaxbn or Flax.
      scale: `[C]`, or None for 1.
      bias: `[C]`, or None for 0.
    """

    def __init__(
        self,
        norm: Any,
        scale: jax.Array | None,
        bias: jax.Array | None,
    ):
        self.scale = nnx.data(None if scale is None else Folded(scale))
        self.bias = nnx.data(None if bias is None else Folded(bias))
        self.axis = norm.axis
        self.activation = getattr(norm, "activation", None)
        self.dtype = norm.dtype
        self.promote_dtype = norm.promote_dtype
        given = norm.mean, norm.var, norm.scale, norm.bias
        self.promoted = jnp.result_type(*(g.dtype for g in given if g is not None))
        self.num_features = norm.num_features
        self.use_running_average = True

    def __call__(
        self,
        x: jax.typing.ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: jax.typing.ArrayLike | None = None,
        residual: jax.typing.ArrayLike | None = None,
        update_running_average: bool | None = None,
    ) -> jax.Array:
        """Returns the output of the layer in evaluation.

        Args:
          x: `[N, ..., C]`.
          use_running_average: overrides the attribute; must be True.
          mask: ignored, as evaluation does not need it.
          residual: an array of the shape of `x`, added before the activation.
          update_running_average: must not be True.

        Raises:
          ValueError: if it is called for training.
        """
        del mask
        if use_running_average is None:
            use_running_average = self.use_running_average
        x = jnp.asarray(x)
        arrays: Any = x, jnp.zeros(0, self.promoted)
        return folded.apply(
            x,
            None if self.scale is None else self.scale[...],
            None if self.bias is None else self.bias[...],
            use_running_average=use_running_average,
            update_running_average=bool(update_running_average),
            axis=self.axis,
            residual=residual,
            activation=self.activation,
            dtype=self.promote_dtype(arrays, dtype=self.dtype)[0].dtype,
        )

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the attribute if it is given; called by `nnx.view`.

        Args:
          use_running_average: must be True when the layer is called.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
