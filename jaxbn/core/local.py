"""Moments of the elements that one device holds, or of a whole array under jit.

    count = sum(mask),  mean = sum(mask * x) / count,
    var = sum(mask * |x - mean|^2) / count

Four forms of the variance, one function each, keep one contract: within 1e-4 of the
true one for |mean|/std up to 1e4 ("fast" excepted). Which is cheapest depends on the
platform:

- "fast", `E[x^2] - E[x]^2`: one pass, but it loses `(mean/std)^2` of its precision.
- "checked": the same, and a second pass, about the mean that is then known, only where
  some channel shows that it lost too much. One collective as a rule under jit. For a
  CPU, where a pass costs most, and for a TPU where x is too large for its fast memory;
  a conditional makes a GPU wait for the host, and keeps x out of a TPU's fast memory.
- "two_pass": the second pass always. For a TPU where x is small: it is read from fast
  memory then.
- "shifted": one pass over `x - s`, s the mean of a k-th part of x. By Cauchy-Schwarz
  `|mean - s|^2 <= k * var` whatever x holds, so no more than a factor k is lost. For a
  GPU, which reads x once and needs no conditional; a TPU would have to read x once more
  than the convolution that makes it.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxbn.core import moments, reduction

# Up to so many bytes a TPU keeps x in its fast memory (VMEM) between the two passes.
_FAST_MEMORY = 16 * 2**20

# Slices that a TPU adds before it sums: with more of them it makes several kernels.
_SLICES = 8

# The part of x that gives "shifted" its shift is at least a k-th of x, k below twice
# this.
_PARTS = 64

# Mean, variance, tail of the mean.
_Parts = tuple[jax.Array, jax.Array, jax.Array]


def batch_moments(
    x: jax.typing.ArrayLike,
    axis: int | Sequence[int] = -1,
    mask: jax.typing.ArrayLike | None = None,
) -> moments.Moments:
    """Count, mean and biased variance of every channel of one batch.

    Differentiable to any order; the backward pass keeps `x` and nothing else of its
    size. Accurate to 1e-4 relative for |mean|/std up to 1e4 in float32.

    Args:
      x: `[N, ..., C]`, any real or complex dtype.
      axis: the channel axis or axes; all others are reduced.
      mask: boolean, broadcastable to `x`; False elements do not count, whatever they
        contain.

    Returns:
      `Moments` of shape `[C]` (the sizes of `axis`, ascending), float32, or float64 for
      float64 input; `mean` is complex for complex `x`. Without any valid element all
      are 0.

    Raises:
      ValueError: if `axis` is out of range or repeated, if `mask` does not broadcast to
        `x` or could mean two things.

    Example:
      >>> moments = batch_moments(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
      >>> moments.mean, moments.var
      (Array([2., 5.], dtype=float32), Array([1., 0.], dtype=float32))

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Algorithm 1.
    """
    x = jnp.asarray(x)
    feature_axes = reduction.canonicalize_axes(axis, x.ndim)
    mask = reduction.canonicalize_mask(mask, x.shape, feature_axes)
    made = local_moments(reduction.Reduction(feature_axes), x, mask)
    return moments.count_per_channel(made)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
# Jitted because eager `lax.cond` would compile its branches anew at every call; inlined
# where there is a jit already, and traced once for all layers of one shape.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def local_moments(
    how: reduction.Reduction, x: jax.Array, mask: jax.Array | None
) -> moments.Moments:
    """Moments of the elements that this device (or this global array) holds.

    Args:
      how: axes, form and dtype; its axis name and groups are not used.
      x: `[N, ..., C]`.
      mask: boolean of the rank of `x` that broadcasts to it, or None.

    Returns:
      `Moments`, `[C]` each; the count has one element on axes that the mask lacks.
    """
    axes = reduction.reduction_axes(x.ndim, how.feature_axes)
    dtype = jnp.dtype(how.dtype or reduction.reduction_dtype(x.dtype))
    if mask is not None:  # Before anything else, or its NaN would reach derivatives.
        x = jnp.where(mask, x, 0)
    count = _count(x, axes, mask)
    form = _FORMS[how.variance]
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
    """Of mean and variance: `mean(dx)` and `2 mean(Re(conj(x - mean) dx))`."""
    axes = reduction.reduction_axes(x.ndim, how.feature_axes)
    wide = made.mean.dtype
    if mask is not None:
        x = jnp.where(mask, x, 0)
    centered = x.astype(wide) - jnp.expand_dims(made.mean, axes)
    dx = dx.astype(wide)
    product = (jnp.conj(centered) * dx).real
    if mask is not None:
        dx, product = jnp.where(mask, dx, 0), jnp.where(mask, product, 0)
    divisor = jnp.maximum(made.count, 1)
    dmean = (jnp.sum(dx, axes) / divisor).astype(wide)
    return dmean, (2 * jnp.sum(product, axes) / divisor).astype(made.var.dtype)


def _auto(axes, dtype, x, mask, count) -> _Parts:
    """The form that is cheapest where the program runs."""
    forms = {
        "cpu": _checked,
        "tpu": _two_pass_in_slices
        if _bytes_on_a_device(x) <= _FAST_MEMORY
        else _checked,
        "cuda": _shifted,
        "rocm": _shifted,
        "default": _two_pass,
    }
    options = {
        name: functools.partial(form, axes, dtype) for name, form in forms.items()
    }
    return jax.lax.platform_dependent(x, mask, count, **options)


def _bytes_on_a_device(x: jax.Array) -> int:
    """Of `x`: all of it unless a mesh of Explicit axes says how it is split."""
    shards = math.prod(reduction.explicit_shards(x, axis) for axis in range(x.ndim))
    return x.size * x.dtype.itemsize // shards


def _fast(axes, dtype, x, mask, count) -> _Parts:
    """`E[x^2] - E[x]^2`, whatever that loses."""
    del mask  # Elements outside it are 0 already.
    one, other = (part.astype(dtype) for part in reduction.apart(x, x))
    mean = _mean(one, axes, count)
    square = _mean(moments.abs_square(other), axes, count)
    var = jnp.maximum(square - moments.abs_square(mean), 0)
    return mean, var, jnp.zeros_like(mean)


def _checked(axes, dtype, x, mask, count) -> _Parts:
    """The fast form, and a second pass where that lost too much."""
    mean, var, tail = _fast(axes, dtype, x, mask, count)

    def again() -> _Parts:
        # Where the sum overflowed, about 0: the sums of that pass are scaled.
        center = jnp.where(jnp.isfinite(mean), mean, 0)
        return _centered(axes, dtype, x, mask, count, center)

    enough = moments.well_conditioned(mean, var)
    return jax.lax.cond(enough, lambda: (mean, var, tail), again)


def _two_pass(axes, dtype, x, mask, count) -> _Parts:
    """The mean, then moments about it."""
    one, other = reduction.apart(x, x)
    center = _scaled_mean(one.astype(dtype), axes, count)
    return _centered(axes, dtype, other, mask, count, center)


def _two_pass_in_slices(axes, dtype, x, mask, count) -> _Parts:
    """Two passes whose second one adds slices of a spatial axis before it sums.

    A TPU adds arrays several times as fast as it sums over them. Not slices of the
    batch, which may be sharded.
    """
    whole = [a for a in axes[1:] if reduction.explicit_shards(x, a) == 1]
    slices = 1
    if whole and x.size:
        size = x.shape[whole[0]]
        slices = max(k for k in range(1, _SLICES + 1) if size % k == 0)
    if slices == 1:
        return _two_pass(axes, dtype, x, mask, count)
    center = _scaled_mean(x.astype(dtype), axes, count)
    expanded = jnp.expand_dims(center, axes)

    def split(array: jax.Array) -> list[jax.Array]:
        varies = array.shape[whole[0]] > 1
        return jnp.split(array, slices, whole[0]) if varies else [array] * slices

    # Split before anything is computed, or the differences would be stored.
    parts = [part.astype(dtype) - expanded for part in split(x)]
    if mask is not None:
        parts = [
            jnp.where(valid, part, 0)
            for valid, part in zip(split(mask), parts, strict=True)
        ]
    offset = _mean(_added(parts), axes, count)
    square = _mean(_added([moments.abs_square(part) for part in parts]), axes, count)
    return moments.about(center, offset, square)


def _added(parts: list[jax.Array]) -> jax.Array:
    """The sum of arrays, in pairs."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        odd = parts[-1:] if len(parts) % 2 else []
        parts = [a + b for a, b in pairs] + odd
    return parts[0]


def _shifted(axes, dtype, x, mask, count) -> _Parts:
    """Moments about the mean of a part of x: of the first places of a spatial axis.

    Not of the first examples, which a batch sharded under jit would have to send to all
    devices. Masks, under which the part may hold nothing, and arrays without such an
    axis take two passes.
    """
    whole = [a for a in axes[1:] if reduction.explicit_shards(x, a) == 1]
    if mask is not None or not whole or x.size == 0:
        return _two_pass(axes, dtype, x, mask, count)
    axis = max(whole, key=lambda a: x.shape[a])
    size = x.shape[axis]
    part = jax.lax.slice_in_dim(x, 0, max(1, size // _PARTS), axis=axis)
    share = count * part.shape[axis] / size
    center = _scaled_mean(part.astype(dtype), axes, share)
    return _centered(axes, dtype, x, None, count, center)


_FORMS = {
    "auto": _auto,
    "fast": _fast,
    "checked": _checked,
    "two_pass": _two_pass,
    "shifted": _shifted,
}


def _centered(axes, dtype, x, mask, count, center) -> _Parts:
    """Moments about a known centre: one pass over x."""
    expanded, wide = jnp.expand_dims(center, axes), x.astype(dtype)
    # Written both ways round so that XLA:CPU fuses each difference into its own sum
    # instead of storing one difference for both.
    left, right = wide - expanded, expanded - wide
    if mask is not None:
        left, right = jnp.where(mask, left, 0), jnp.where(mask, right, 0)
    offset = _scaled_mean(left, axes, count)
    square = _mean(moments.abs_square(right), axes, count)
    return moments.about(center, offset, square)


def _mean(values: jax.Array, axes: tuple[int, ...], count: jax.Array) -> jax.Array:
    """Sum over count, summed in float32 or wider, in the dtype of the values."""
    total = jnp.sum(values, axes, dtype=reduction.reduction_dtype(values.dtype))
    return (total / jnp.maximum(count, 1)).astype(values.dtype)


def _scaled_mean(values: jax.Array, axes: tuple[int, ...], count: jax.Array):
    """The same for a sum that could overflow where its mean does not.

    Scaled by a power of two, so that nothing is rounded; not free on a CPU.
    """
    number = math.prod(values.shape[a] for a in axes)
    scale = 2.0 ** math.ceil(math.log2(max(number, 1)))
    wide = values.astype(reduction.reduction_dtype(values.dtype))
    total = jnp.sum(wide * (1 / scale), axes)
    return (total * (scale / jnp.maximum(count, 1))).astype(values.dtype)


def _count(x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> jax.Array:
    """Valid elements per channel, `[C]`, or of size one on axes the mask lacks."""
    real = reduction.real_dtype(reduction.reduction_dtype(x.dtype))
    if mask is None:
        ones = (1,) * (x.ndim - len(axes))
        return jnp.full(ones, math.prod(x.shape[a] for a in axes), real)
    repeats = math.prod(x.shape[a] for a in axes if mask.shape[a] == 1)
    return (jnp.sum(mask, axes, dtype=jnp.int32) * repeats).astype(real)
