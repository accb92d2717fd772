"""Moments of a batch: count, mean and variance of every channel.

    count = sum(mask),  mean = sum(mask * x) / count,
    var = sum(mask * |x - mean|^2) / count

`x` is `[N, ..., C]` unless `axis` says otherwise; moments are `[C]`, float32 or wider.

The textbook one-pass variance `E[x^2] - E[x]^2` reads `x` once but loses
`(mean/std)^2` of its precision. It is computed first; only where some channel shows
that it lost too much is a second pass made, centred at the mean that is then known.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxbn.core import reduction

# With var >= 0.01 * mean^2 the one-pass formula magnifies rounding (about 3e-7 for a
# float32 sum) at most a hundredfold, which keeps the variance within 1e-4.
_WELL_CONDITIONED = 0.01


# "fast" is `E[x^2] - E[x]^2`; "checked" makes a second pass where that lost too much;
# "two_pass" always makes it, which needs no branch and so no agreement of devices.
Variance = Literal["fast", "checked", "two_pass"]


class Moments(NamedTuple):
    """Moments per channel: what one batch knows about its distribution."""

    count: jax.Array  # [C], real; elements that were reduced
    mean: jax.Array  # [C]
    var: jax.Array  # [C], real; biased, divided by count


class LocalMoments(NamedTuple):
    """Moments of one device whose mean is known to two floats, `mean + tail`.

    At |mean|/std = 1e4 a float32 mean is wrong by 5e-4 std, which a merge over
    devices would turn into variance; the second float keeps what the first rounds.
    """

    count: jax.Array  # [C], or one element where no mask depends on the channel
    mean: jax.Array  # [C]
    tail: jax.Array  # [C]
    var: jax.Array  # [C]


def batch_moments(
    x: jax.typing.ArrayLike,
    axis: int | Sequence[int] = -1,
    mask: jax.typing.ArrayLike | None = None,
) -> Moments:
    """Count, mean and biased variance of every channel of one batch.

    Differentiable to any order. Accurate to 1e-4 relative for |mean|/std up to 1e4 in
    float32.

    Args:
      x: `[N, ..., C]`, any real or complex dtype.
      axis: the channel axis or axes; all others are reduced.
      mask: boolean, broadcastable to `x`; False elements do not count, whatever they
        contain.

    Returns:
      `Moments` of shape `[C]` (the sizes of `axis`, ascending), float32, or float64 for
      float64 input; `mean` is complex for complex `x`. Without any valid element all
      three are 0.

    Raises:
      ValueError: if `axis` is out of range or repeated, if `mask` does not broadcast to
        `x` or could mean two things.

    Example:
      >>> batch_moments(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
      Moments(count=Array([2., 2.], dtype=float32), mean=Array([2., 5.], dtype=float32), var=Array([1., 0.], dtype=float32))

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Algorithm 1.
    """  # noqa: E501
    x = jnp.asarray(x)
    feature_axes = reduction.canonicalize_axes(axis, x.ndim)
    mask = reduction.canonicalize_mask(mask, x.shape, feature_axes)
    return as_moments(local_moments(x, feature_axes, mask))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint batches.

    Associative and commutative up to rounding; a side of count 0 is neutral.

    Args:
      a: moments of one batch, `[C]` each.
      b: moments of another, same shapes.

    Returns:
      `Moments` of both batches together, `[C]` each.

    Example:
      >>> a = batch_moments(jnp.array([[1.0], [3.0]]))
      >>> b = batch_moments(jnp.array([[8.0]]))
      >>> merge_moments(a, b).mean
      Array([4.], dtype=float32)

    References:
      Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing
      Sample Variances, 1979.
    """
    count, mean, var = (jnp.stack(parts) for parts in zip(a, b, strict=True))
    return merge_locals(LocalMoments(count, mean, jnp.zeros_like(mean), var))


# Jitted because eager `lax.cond` would compile its branches anew at every call; inlined
# where there is a jit already, and traced once for all layers of one shape.
@functools.partial(jax.jit, static_argnums=(1, 3, 4, 5), inline=True)
def local_moments(
    x: jax.Array,
    feature_axes: tuple[int, ...],
    mask: jax.Array | None,
    dtype: jnp.dtype | None = None,
    variance: Variance = "checked",
    total: Callable[..., tuple[jax.Array, ...]] | None = None,
) -> LocalMoments:
    """Moments of the elements that this device (or this global array) holds.

    Args:
      x: `[N, ..., C]`.
      feature_axes: canonical channel axes.
      mask: boolean of the rank of `x` that broadcasts to it, or None.
      dtype: of values, squares and moments; default float32, or wider for wider
        `x`. Sums are never narrower than float32.
      variance: how it is computed.
      total: adds up sums of several devices, so that the moments are those of all.
    """
    axes = reduction.reduction_axes(x.ndim, feature_axes)
    dtype = jnp.dtype(dtype or reduction.reduction_dtype(x.dtype))
    total = total or (lambda *sums: sums)
    if mask is not None:  # Before anything else, or its NaN would reach derivatives.
        x = jnp.where(mask, x, 0)

    def sums(*values: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(
            jnp.sum(v, axes, dtype=reduction.reduction_dtype(v.dtype)) for v in values
        )

    def mean_of(values: jax.Array, sum_: jax.Array) -> jax.Array:
        return (sum_ / jnp.maximum(count, 1)).astype(values.dtype)

    def as_they_are(mean: jax.Array, var: jax.Array):
        return mean, jnp.zeros_like(mean), var

    def centered(center: jax.Array, _: jax.Array):
        expanded, wide = jnp.expand_dims(center, axes), x.astype(dtype)
        # Written both ways round so that XLA:CPU fuses each difference into its own
        # sum instead of storing one difference for both.
        left, right = wide - expanded, expanded - wide
        if mask is not None:
            left, right = jnp.where(mask, left, 0), jnp.where(mask, right, 0)
        values = left, abs_square(right)
        offset, square = map(mean_of, values, total(*sums(*values)))
        mean = center + offset
        tail = (center - mean) + offset
        return mean, tail, jnp.maximum(square - abs_square(offset), 0)

    one, other = (part.astype(dtype) for part in apart(x, x))
    if variance == "two_pass":
        count, first = total(_count(x, axes, mask), *sums(one))
        mean = mean_of(one, first)
        difference = x.astype(dtype) - jnp.expand_dims(mean, axes)
        if mask is not None:
            difference = jnp.where(mask, difference, 0)
        square = abs_square(difference)
        var = mean_of(square, *total(*sums(square)))
        return LocalMoments(count, *as_they_are(mean, var))

    values = one, abs_square(other)
    count, *first = total(_count(x, axes, mask), *sums(*values))
    mean, square = map(mean_of, values, first)
    var = jnp.maximum(square - abs_square(mean), 0)
    if variance == "fast":
        return LocalMoments(count, *as_they_are(mean, var))
    # NaN compares false, so an overflow of the squares takes the second pass too.
    well_conditioned = jnp.all(var >= _WELL_CONDITIONED * abs_square(mean))
    parts = jax.lax.cond(well_conditioned, as_they_are, centered, mean, var)
    return LocalMoments(count, *parts)


def as_moments(local: LocalMoments) -> Moments:
    """Moments of a single device."""
    count = jnp.broadcast_to(local.count, local.mean.shape)
    return Moments(count, local.mean, local.var)


def merge_locals(rows: LocalMoments) -> Moments:
    """Moments of the union of the batches in `rows`, stacked along axis 0."""
    count = jnp.sum(rows.count, 0, keepdims=True)
    weight = rows.count / jnp.maximum(count, 1)
    reference = jnp.sum(weight * rows.mean, 0, keepdims=True)
    # Differences of neighbouring floats are exact, so the tails are not lost.
    delta = (rows.mean - reference) + rows.tail
    offset = jnp.sum(weight * delta, 0)
    var = jnp.sum(weight * (rows.var + abs_square(delta)), 0) - abs_square(offset)
    mean = reference[0] + offset
    return Moments(jnp.broadcast_to(count[0], mean.shape), mean, jnp.maximum(var, 0))


def apart(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The same arrays, each to be widened for one sum and for nothing else.

    XLA:CPU widens within a sum what only that sum uses, and otherwise stores it.
    """
    if all(array.dtype == reduction.reduction_dtype(array.dtype) for array in arrays):
        return arrays
    return jax.lax.platform_dependent(
        *arrays, cpu=_barrier, default=lambda *arrays: arrays
    )


def _barrier(*arrays):
    return jax.lax.optimization_barrier(arrays)


def abs_square(x: jax.Array) -> jax.Array:
    """`|x|^2`, real also for complex `x`."""
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def _count(x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> jax.Array:
    """Valid elements per channel, `[C]`, or of size one on axes the mask lacks."""
    real = reduction.real_dtype(reduction.reduction_dtype(x.dtype))
    if mask is None:
        ones = (1,) * (x.ndim - len(axes))
        return jnp.full(ones, math.prod(x.shape[a] for a in axes), real)
    repeats = math.prod(x.shape[a] for a in axes if mask.shape[a] == 1)
    return (jnp.sum(mask, axes, dtype=jnp.int32) * repeats).astype(real)
