"""Moments of a batch: count, mean and variance of every channel, and their merging.

A mean is stored in two floats, `mean + tail`. At |mean|/std = 1e4 a float32 mean is
wrong by 5e-4 std. A merge would turn this error into variance, and the backward pass
would turn it into a gradient of the scale. The second float keeps what the first one
rounds away.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# JAX rebuilds moments from any leaves, also None, so None cannot mean "not given".
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
      tail: `[C]`; the part that `mean` rounds away. The default is zeros of the shape
        of `mean`, so that `lax.scan` can carry the result of `merge_moments`.

    Example:
      >>> Moments(jnp.array([8.0]), jnp.array([0.5]), jnp.array([4.0])).tail
      Array([0.], dtype=float32)
    """

    __slots__ = ()

    def __new__(cls, count: Any, mean: Any, var: Any, tail: Any = _ZEROS) -> "Moments":
        """Makes moments from four arrays, or from three and a tail of zeros."""
        tail = jnp.zeros_like(mean) if tail is _ZEROS else tail
        return super().__new__(cls, count, mean, var, tail)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Returns the moments of the union of two disjoint batches.

    The merge is associative and commutative up to rounding. A side of count 0 changes
    nothing.

    Args:
      a: moments of one batch, `[C]` each.
      b: moments of another batch, same shapes.

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
    # The sides are not stacked, because sums over two rows would be separate kernels.
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
    """Returns the moments of the union of the batches, stacked along axis 0.

    Args:
      rows: `[rows, C]` each. The counts may have one element if they are the same for
        all channels.
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
    """Returns the moments with one count per channel, even if all share one."""
    count = jnp.broadcast_to(moments.count, moments.mean.shape)
    return moments._replace(count=count)


def well_conditioned(mean: jax.Array, var: jax.Array) -> jax.Array:
    """Returns whether the fast form of `var` is accurate to 1e-4 in all channels.

    The fast form is `E[x^2] - E[x]^2`. With `var >= 0.04 * |mean|^2` it magnifies
    rounding, which is up to 2e-6 for a float32 sum, at most 26 times. Overflow and NaN
    do not count as accurate.
    """
    return jnp.all((var >= 0.04 * abs_square(mean)) & jnp.isfinite(var))


def about(
    center: jax.Array, offset: jax.Array, square: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns mean, variance and tail from the first two moments about a centre.

    A variance that rounding alone can explain becomes 0. A constant channel has such a
    variance, because its computed mean is seldom exact.

    Args:
      center: a value near the mean, `[C]`.
      offset: the mean of the differences from it, `[C]`.
      square: the mean of their absolute squares, `[C]`.
    """
    # Differences that overflow may have a mean of NaN. The infinite variance shows the
    # overflow, so the mean can stay finite.
    overflow = jnp.isinf(square)
    offset = jnp.where(overflow & ~jnp.isfinite(offset), 0, offset)
    mean = center + offset
    var = square - jnp.where(overflow, 0, abs_square(offset))
    eps = float(jnp.finfo(mean.dtype).eps)
    noise = 100 * eps * abs_square(offset) + jnp.square(16 * eps**2 * jnp.abs(mean))
    # The comparison is false for NaN, so that NaN stays.
    var = jnp.where((var <= noise) & ~overflow, 0, var)
    return mean, var, (center - mean) + offset


def abs_square(x: jax.Array) -> jax.Array:
    """Returns `|x|^2`, which is real also for complex `x`."""
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)
