"""Filter Response Normalization, which needs no batch, and its thresholded unit."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from jaxbn._core import arguments, moments, reduction

_SQUARE = "jaxbn.mean_square"


def filter_response_norm(
    x: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None,
    bias: jax.typing.ArrayLike | None,
    threshold: jax.typing.ArrayLike | None = None,
    *,
    epsilon: jax.typing.ArrayLike = 1e-6,
    axis: int | Sequence[int] = -1,
    mask: jax.typing.ArrayLike | None = None,
    axis_name: reduction.AxisName | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Divides each channel of each example by its root mean square.

        y = max(x / sqrt(mean(x^2) + |epsilon|) * scale + bias, threshold)

    The mean is over the positions of one example, such as the pixels, so that examples
    and devices do not depend on each other. The backward pass keeps `x` and arrays
    `[N, C]`.

    Args:
      x: `[N, ..., C]`, real. Integers are promoted to float32.
      scale: `[C]`, or None for 1.
      bias: `[C]`, or None for 0.
      threshold: `[C]`, or None for no threshold.
      epsilon: a number, or `[C]`. Without positions it should be a trained parameter
        that begins at 1e-4, because `x / sqrt(x^2)` is a sign.
      axis: channel axis or axes of `x`. The first other axis is that of the examples.
      mask: True where an element counts; broadcast to `x`. Other elements are
        normalised too, and affect nothing else.
      axis_name: axis, or tuple of axes, over which the positions are split.
      dtype: the dtype of `y`. Default: the dtype of `x`.

    Returns:
      `y` of the shape of `x`.

    Raises:
      ValueError: if `axis`, `mask` or a parameter does not fit `x`.
      TypeError: if `x` is complex.

    Example:
      >>> filter_response_norm(jnp.array([[[3.0], [-3.0]]]), None, None, -0.5).round(3)
      Array([[[ 1. ],
              [-0.5]]], dtype=float32)

    References:
      Singh and Krishnan, Filter Response Normalization Layer, arXiv:1911.09737,
      Equations 1 to 4.
    """
    x = jnp.asarray(x)
    x = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)
    if jnp.iscomplexobj(x):
        raise TypeError(f"`x` must be real, got {x.dtype}.")
    feature_axes = arguments.as_feature_axes(axis, x.ndim)
    shape = tuple(x.shape[a] for a in feature_axes)
    others = reduction.reduction_axes(x.ndim, feature_axes)
    if not others:
        raise ValueError(f"`x` must have an axis of examples, got shape {x.shape}.")
    parameters = {
        "scale": scale, "bias": bias, "threshold": threshold, "epsilon": epsilon
    }  # fmt: skip
    arrays = []
    for name, value in parameters.items():
        if value is not None and np.ndim(value):
            arguments.check_channels(name, value, shape)
            value = jnp.expand_dims(jnp.asarray(value), others)
        arrays.append(value)
    mask = arguments.as_mask(mask, x.shape)
    dtype = arguments.as_output(x, epsilon=0.0, dtype=dtype, activation=None).dtype
    apply = functools.partial(_apply, others[1:], axis_name, dtype)
    # `prevent_cse` would keep XLA from fusing the sums with their operands.
    policy = jax.checkpoint_policies.save_only_these_names(_SQUARE)
    return jax.checkpoint(apply, policy=policy, prevent_cse=False)(x, mask, *arrays)


def _apply(axes, axis_name, dtype, x, mask, scale, bias, threshold, epsilon):
    wide = x.astype(reduction.reduction_dtype(x.dtype))
    counted = wide if mask is None else jnp.where(mask, wide, 0)
    ones = jnp.ones((), wide.dtype) if mask is None else mask.astype(wide.dtype)
    ones = jnp.broadcast_to(ones, x.shape)
    total = jnp.sum(moments.abs_square(counted), axes, keepdims=True)
    count = jnp.sum(ones, axes, keepdims=True)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    square = total / jnp.maximum(count, 1) + jnp.abs(epsilon)
    square = jax.ad_checkpoint.checkpoint_name(square, _SQUARE)
    if mask is not None:
        # Elements outside the mask must give no NaN, in values and in gradients.
        wide = jnp.where(mask | jnp.isfinite(wide), wide, 0)
    y = wide * jax.lax.rsqrt(jnp.where(square > 0, square, jnp.inf))
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias
    y = y if threshold is None else jnp.maximum(y, threshold)
    return y.astype(dtype)


class FilterResponseNorm(nn.Module):
    """Filter Response Normalization with its thresholded unit, for Flax Linen.

    It takes the place of Batch Normalization and of the activation after it; see
    `filter_response_norm`. Parameters: `scale`, `bias`, `threshold`, and `epsilon` if
    it is trained.

    Attributes:
      epsilon: the value, or the first value.
      learn_epsilon: train epsilon. Needed where an example has one position per
        channel; begin with 1e-4 then.
      use_threshold: apply the thresholded unit. False leaves the activation to you.
      axis: channel axis or axes of the input.
      axis_name: axis over which the positions are split.
      dtype: the dtype of the result. Default: that of the input.
      param_dtype: the dtype of the parameters.

    Example:
      >>> layer = FilterResponseNorm()
      >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 4, 4, 3)))
      >>> sorted(variables["params"])
      ['bias', 'scale', 'threshold']

    References:
      Singh and Krishnan, arXiv:1911.09737.
    """

    epsilon: float = 1e-6
    learn_epsilon: bool = False
    use_threshold: bool = True
    axis: Any = -1
    axis_name: Any = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.typing.ArrayLike, *, mask: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        """Returns the normalised input; see `filter_response_norm`.

        Args:
          x: `[N, ..., C]`.
          mask: broadcastable to `x`.
        """
        x = jnp.asarray(x)
        shape = [x.shape[a] for a in arguments.as_feature_axes(self.axis, x.ndim)]

        def param(name: str, value: float) -> jax.Array:
            init = initializers.constant(value)
            return self.param(name, init, shape, self.param_dtype)

        return filter_response_norm(
            x,
            param("scale", 1),
            param("bias", 0),
            param("threshold", 0) if self.use_threshold else None,
            epsilon=param("epsilon", self.epsilon)
            if self.learn_epsilon
            else self.epsilon,
            axis=self.axis,
            mask=mask,
            axis_name=None if self.is_initializing() else self.axis_name,
            dtype=self.dtype,
        )


class NnxFilterResponseNorm(nnx.Module):
    """Filter Response Normalization with its thresholded unit, for Flax NNX.

    See `FilterResponseNorm`.

    Args:
      num_features: the size of the channel axis, or the sizes of several.
      epsilon: the value, or the first value.
      learn_epsilon: train epsilon.
      use_threshold: apply the thresholded unit.
      axis: channel axis or axes of the input.
      axis_name: axis over which the positions are split.
      dtype: the dtype of the result. Default: that of the input.
      param_dtype: the dtype of the parameters.
      rngs: not needed; layers of NNX are usually given them.

    Example:
      >>> NnxFilterResponseNorm(3)(jnp.ones((2, 4, 4, 3))).shape
      (2, 4, 4, 3)
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float = 1e-6,
        learn_epsilon: bool = False,
        use_threshold: bool = True,
        axis: int | Sequence[int] = -1,
        axis_name: Any = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs

        def param(value: float) -> nnx.Param:
            return nnx.Param(jnp.full(num_features, value, param_dtype))

        self.scale, self.bias = param(1), param(0)
        self.threshold = param(0) if use_threshold else nnx.data(None)
        self.epsilon = param(epsilon) if learn_epsilon else epsilon
        self.axis = axis if isinstance(axis, int) else tuple(axis)
        self.axis_name = axis_name
        self.dtype = dtype

    def __call__(
        self, x: jax.typing.ArrayLike, *, mask: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        """Returns the normalised input; see `filter_response_norm`.

        Args:
          x: `[N, ..., C]`.
          mask: broadcastable to `x`.
        """
        epsilon: Any = self.epsilon
        epsilon = epsilon[...] if isinstance(epsilon, nnx.Param) else epsilon
        return filter_response_norm(
            x,
            self.scale[...],
            self.bias[...],
            None if self.threshold is None else self.threshold[...],
            epsilon=epsilon,
            axis=self.axis,
            mask=mask,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
