"""The moments of one batch, for users who study or combine them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxbn import checks
from jaxbn.core import local, moments, reduction


def batch_moments(
    x: jax.typing.ArrayLike,
    axis: int | Sequence[int] = -1,
    mask: jax.typing.ArrayLike | None = None,
) -> moments.Moments:
    """Returns count, mean and biased variance of every channel of one batch.

    The result is differentiable to any order. The backward pass keeps `x` and nothing
    else of its size. In float32 the result is accurate to 1e-4 relative for |mean|/std
    up to 1e4.

    Args:
      x: `[N, ..., C]`, any real or complex dtype.
      axis: the channel axis or axes; all others are reduced.
      mask: boolean, broadcastable to `x`. False elements do not count, whatever they
        contain.

    Returns:
      `Moments` of shape `[C]` (the sizes of `axis`, ascending), in float32, or in
      float64 for float64 input. `mean` is complex for complex `x`. Without any valid
      element all are 0.

    Raises:
      ValueError: if `axis` is out of range or repeated, or if `mask` does not broadcast
        to `x` or is ambiguous.

    Example:
      >>> moments = batch_moments(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
      >>> moments.mean, moments.var
      (Array([2., 5.], dtype=float32), Array([1., 0.], dtype=float32))

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Algorithm 1.
    """
    x = jnp.asarray(x)
    feature_axes = checks.as_feature_axes(axis, x.ndim)
    mask = checks.as_mask(mask, x.shape)
    made = local.local_moments(reduction.Reduction(feature_axes), x, mask)
    return moments.count_per_channel(made)
