"""Moments of a batch: count, mean and variance of every channel, and their union.

A mean is known to two floats, `mean + tail`. At |mean|/std = 1e4 a float32 mean is
wrong by 5e-4 std, which a merge would turn into variance and the backward pass into a
gradient of the scale; the second float keeps what the first one rounds away.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# JAX rebuilds moments of any leaves, None among them, so None cannot mean "not given".
_ZEROS: Any = object()


class _Moments(NamedTuple):
    count: jax.Array
    mean: jax.Array
    var: jax.Array
    tail: jax.Array


class Moments(_Moments):
    """Count, mean and variance of every channel of one batch.

    Attributes:
      count: `[C]`, real; the number of elements that were reduced.
      mean: `[C]`.
      var: `[C]`, real; biased, which means divided by `count`.
      tail: `[C]`; what `mean` rounds away. Zeros of the shape of `mean` by default, so
        that `lax.scan` can carry the result of `merge_moments`.
    """

    __slots__ = ()

    def __new__(cls, count: Any, mean: Any, var: Any, tail: Any = _ZEROS) -> "Moments":
        """Makes moments of four arrays, or of three and a tail of zeros."""
        tail = jnp.zeros_like(mean) if tail is _ZEROS else tail
        return super().__new__(cls, count, mean, var, tail)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint batches.

    Associative and commutative up to rounding; a side of count 0 is neutral.

    Args:
      a: moments of one batch, `[C]` each.
      b: moments of another, same shapes.

    Returns:
      `Moments` of both batches together, `[C]` each.

    Example:
      >>> a = Moments(jnp.array([2.0]), jnp.array([2.0]), jnp.array([1.0]))
      >>> b = Moments(jnp.array([1.0]), jnp.array([8.0]), jnp.array([0.0]))
      >>> merge_moments(a, b).mean
      Array([4.], dtype=float32)

    References:
      Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing
      Sample Variances, 1979.
    """
    count = a.count + b.count
    sides = [(side, side.count / jnp.maximum(count, 1)) for side in (a, b)]
    # Not of an array of both: sums over two rows would be kernels of their own.
    reference = offset = jnp.zeros_like(a.mean)
    square = jnp.zeros_like(a.var)
    for side, weight in sides:
        reference = reference + weight * side.mean
    for side, weight in sides:
        delta = (side.mean - reference) + side.tail
        offset = offset + weight * delta
        square = square + weight * (side.var + abs_square(delta))
    mean, var, tail = about(reference, offset, square)
    return Moments(jnp.broadcast_to(count, mean.shape), mean, var, tail)


def merge_rows(rows: Moments) -> Moments:
    """Moments of the union of the batches in `rows`, stacked along axis 0.

    Args:
      rows: `[rows, C]` each; the counts may have one element where they are the same
        for all channels.
    """
    count = jnp.sum(rows.count, 0, keepdims=True)
    weight = rows.count / jnp.maximum(count, 1)
    reference = jnp.sum(weight * rows.mean, 0, keepdims=True)
    # Differences of neighbouring floats are exact, so the tails are not lost.
    delta = (rows.mean - reference) + rows.tail
    offset = jnp.sum(weight * delta, 0)
    square = jnp.sum(weight * (rows.var + abs_square(delta)), 0)
    mean, var, tail = about(reference[0], offset, square)
    return Moments(jnp.broadcast_to(count[0], mean.shape), mean, var, tail)


def count_per_channel(moments: Moments) -> Moments:
    """The same with a count for each channel, where there was one for all."""
    count = jnp.broadcast_to(moments.count, moments.mean.shape)
    return moments._replace(count=count)


def well_conditioned(mean: jax.Array, var: jax.Array) -> jax.Array:
    """Whether `var`, made as `E[x^2] - E[x]^2`, is accurate to 1e-4 in all channels.

    With `var >= 0.04 * |mean|^2` the formula magnifies rounding, which is up to 2e-6
    for a float32 sum, at most 26 times. Overflow and NaN are not accurate.
    """
    return jnp.all((var >= 0.04 * abs_square(mean)) & jnp.isfinite(var))


def about(
    center: jax.Array, offset: jax.Array, square: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean, variance and tail, from the first two moments about a centre.

    A variance that rounding alone can explain is 0: that of a constant channel, whose
    mean is seldom a float.

    Args:
      center: near the mean, `[C]`.
      offset: mean of the differences from it, `[C]`.
      square: mean of their absolute squares, `[C]`.
    """
    # A difference that overflows may have a mean of NaN. The infinite variance tells of
    # it, so that the mean stays finite.
    overflow = jnp.isinf(square)
    offset = jnp.where(overflow & ~jnp.isfinite(offset), 0, offset)
    mean = center + offset
    var = square - jnp.where(overflow, 0, abs_square(offset))
    eps = float(jnp.finfo(mean.dtype).eps)
    noise = 100 * eps * abs_square(offset) + jnp.square(16 * eps**2 * jnp.abs(mean))
    # The comparison is false for NaN, which therefore stays.
    var = jnp.where((var <= noise) & ~overflow, 0, var)
    return mean, var, (center - mean) + offset


def abs_square(x: jax.Array) -> jax.Array:
    """`|x|^2`, real also for complex `x`."""
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)
