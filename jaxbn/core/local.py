"""Moments of the elements that one device holds, or of a whole array under jit.

count = sum(mask),  mean = sum(mask * x) / count,
var = sum(mask * |x - mean|^2) / count
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxbn.core import forms, moments, reduction


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
# Without jit an eager `lax.cond` would compile its branches at every call. An outer
# jit inlines this one, and traces it once for all layers of one shape.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def local_moments(
    how: reduction.Reduction, x: jax.Array, mask: jax.Array | None
) -> moments.Moments:
    """Computes the moments of the elements that this device (or global array) holds.

    Args:
      how: axes, form and dtype; the devices in it are not used.
      x: `[N, ..., C]`.
      mask: boolean of the rank of `x` that broadcasts to it, or None.

    Returns:
      `Moments`, `[C]` each. The count has size 1 on axes along which the mask does not
      vary.
    """
    axes = reduction.reduction_axes(x.ndim, how.feature_axes)
    dtype = jnp.dtype(how.dtype or reduction.reduction_dtype(x.dtype))
    if mask is not None:  # This comes first, or masked NaN would reach derivatives.
        x = jnp.where(mask, x, 0)
    count = _count(x, axes, mask)
    form = forms.FORMS[how.variance]
    return moments.Moments(count, *form(axes, dtype, x, mask, count))


@local_moments.defjvp
def _local_moments_jvp(how, primals, tangents):
    x, mask = primals
    made = local_moments(how, x, mask)
    tangent = jax.checkpoint(
        functools.partial(_tangent, how),
        policy=jax.checkpoint_policies.nothing_saveable,
        prevent_cse=False,
    )
    dmean, dvar = tangent(x, mask, made, tangents[0])
    zeros = jax.tree.map(jnp.zeros_like, made)
    return made, zeros._replace(mean=dmean, var=dvar)


def _tangent(how, x, mask, made, dx):
    """Returns the tangents of mean and variance.

    They are `mean(dx)` and `2 mean(Re(conj(x - mean) dx))`.
    """
    axes = reduction.reduction_axes(x.ndim, how.feature_axes)
    wide = made.mean.dtype
    if mask is not None:
        x = jnp.where(mask, x, 0)
    centered = x.astype(wide) - jnp.expand_dims(made.mean, axes)
    centered = centered - jnp.expand_dims(made.tail, axes)
    dx = dx.astype(wide)
    if mask is not None:  # This precedes the product, or NaN would reach derivatives.
        dx = jnp.where(mask, dx, 0)
    product = (jnp.conj(centered) * dx).real
    divisor = jnp.maximum(made.count, 1)
    dmean = (jnp.sum(dx, axes) / divisor).astype(wide)
    return dmean, (2 * jnp.sum(product, axes) / divisor).astype(made.var.dtype)


def _count(x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> jax.Array:
    """Returns the number of valid elements per channel.

    The shape is `[C]`, with size 1 on axes along which the mask does not vary.
    """
    real = reduction.real_dtype(reduction.reduction_dtype(x.dtype))
    if mask is None:
        ones = (1,) * (x.ndim - len(axes))
        return jnp.full(ones, math.prod(x.shape[a] for a in axes), real)
    repeats = math.prod(x.shape[a] for a in axes if mask.shape[a] == 1)
    return (jnp.sum(mask, axes, dtype=jnp.int32) * repeats).astype(real)
