"""What a device knows of the other devices: their moments, from earlier steps.

Only sums over devices travel. Each device subtracts its own part from them, so that
what is left is that of its peers. Sums are taken about a centre that all devices know,
the mean of the steps before, so that a large mean does not cancel in them.

Arrays of one device, or of several simulated ones, are `[devices, C]`; those that are
the same for all are `[C]`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbn.core import moments as moments_lib
from jaxbn.core.moments import Moments


class Sums(NamedTuple):
    """What is added up over devices: moments, and what a backward pass has summed."""

    count: jax.Array
    offset: jax.Array  # Of x - center.
    square: jax.Array  # Of |x - center|^2.
    gradient: jax.Array  # Of g, the cotangent of x_hat.
    product: jax.Array  # Of x_hat * g.


class Memory(NamedTuple):
    """Averages over the last steps; counts are those of all of them, decayed."""

    count: jax.Array
    mean: jax.Array
    var: jax.Array
    gradient: jax.Array  # Per step.
    product: jax.Array


def sums_of(moments: Moments, center: jax.Array) -> Sums:
    """The moments as sums about a centre; of a backward pass nothing is known yet."""
    count = jnp.broadcast_to(moments.count, moments.mean.shape)
    delta = (moments.mean - center) + moments.tail
    square = moments.var + jnp.square(delta)
    # An empty device says nothing, whatever its mean.
    offset, square = (jnp.where(count > 0, count * part, 0) for part in (delta, square))
    return Sums(count, offset, square, jnp.zeros_like(delta), jnp.zeros_like(delta))


def moments_of(sums: Sums, center: jax.Array) -> Moments:
    """The moments again, to rounding."""
    divisor = jnp.maximum(sums.count, 1)
    mean, var, tail = moments_lib.about(
        center, sums.offset / divisor, sums.square / divisor
    )
    return Moments(sums.count, mean, jnp.maximum(var, 0), tail)


def is_accurate(sums: Sums, center: jax.Array) -> jax.Array:
    """Where the centre is within 30 standard deviations of the mean.

    The variance is then right to some 1e-4: its rounding, of the few values that are
    summed, is magnified a thousand times at most. A constant channel is right if the
    centre is its value but for rounding.
    """
    divisor = jnp.maximum(sums.count, 1)
    offset = sums.offset / divisor
    var = sums.square / divisor - jnp.square(offset)
    rounding = 16 * jnp.finfo(offset.dtype).eps * jnp.abs(center)
    return (var >= 0.001 * jnp.square(offset)) | (jnp.abs(offset) <= rounding)


def remembered(
    memory: Memory,
    sums: Sums,
    center: jax.Array,
    decay: float,
    share: jax.Array,
) -> Memory:
    """The memory after one more step.

    Args:
      memory: of the steps before.
      sums: of the last step.
      center: what they are about.
      decay: how much older steps weigh, in [0, 1).
      share: of the last step among all: `1 / sum over steps of decay^age`.
    """
    old = Moments(decay * memory.count, memory.mean, memory.var)
    merged = moments_lib.merge_moments(old, moments_of(sums, center))
    gradient, product = (
        before + share * (now - before)
        for before, now in (
            (memory.gradient, sums.gradient),
            (memory.product, sums.product),
        )
    )
    return Memory(merged.count, merged.mean, merged.var, gradient, product)


def without(everyone: Memory, own: Memory) -> Memory:
    """What is known of all devices but one's own: the others' memory, `[devices, C]`.

    By the law of total variance, about the mean of all: own and others' squares add up.
    """
    count = everyone.count - own.count
    # Where there is nobody else, counts may differ by rounding.
    others = count > 1e-5 * everyone.count
    divisor = jnp.where(others, count, 1)
    delta = own.mean - everyone.mean
    opposite = -delta * own.count / divisor
    square = everyone.count * everyone.var
    square = square - own.count * (own.var + jnp.square(delta))
    var = jnp.maximum(square / divisor - jnp.square(opposite), 0)
    made = Memory(
        count,
        everyone.mean + opposite,
        var,
        everyone.gradient - own.gradient,
        everyone.product - own.product,
    )
    return Memory(*(jnp.where(others, part, 0) for part in made))
