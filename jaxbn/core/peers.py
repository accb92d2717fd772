"""The memory that a device has of the other devices' moments in earlier steps.

Devices exchange only sums over all devices. Each device subtracts its own part, and the
sums of the other devices are left. The sums are about a centre that all devices know,
the mean of the earlier steps, so that a large mean causes no cancellation.

Arrays of one device, or of several simulated ones, are `[devices, C]`. Arrays that are
the same for all devices are `[C]`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbn.core import moments as moments_lib
from jaxbn.core.moments import Moments


class Sums(NamedTuple):
    """The sums over devices: moments, and the two sums of a backward pass."""

    count: jax.Array
    offset: jax.Array  # The sum of x - center.
    square: jax.Array  # The sum of |x - center|^2.
    gradient: jax.Array  # The sum of g, the cotangent of x_hat.
    product: jax.Array  # The sum of x_hat * g.


class Memory(NamedTuple):
    """Averages over the last steps; the count is the decayed sum of all counts."""

    count: jax.Array
    mean: jax.Array
    var: jax.Array
    gradient: jax.Array  # The average per step.
    product: jax.Array


def sums_of(moments: Moments, center: jax.Array) -> Sums:
    """Returns the moments as sums about a centre.

    The sums of the backward pass are 0, because they are not known yet.
    """
    count = jnp.broadcast_to(moments.count, moments.mean.shape)
    delta = (moments.mean - center) + moments.tail
    square = moments.var + jnp.square(delta)
    # An empty device sends 0, whatever its mean.
    offset, square = (jnp.where(count > 0, count * part, 0) for part in (delta, square))
    return Sums(count, offset, square, jnp.zeros_like(delta), jnp.zeros_like(delta))


def moments_of(sums: Sums, center: jax.Array) -> Moments:
    """Returns the moments from sums about a centre, up to rounding."""
    divisor = jnp.maximum(sums.count, 1)
    mean, var, tail = moments_lib.about(
        center, sums.offset / divisor, sums.square / divisor
    )
    return Moments(sums.count, mean, jnp.maximum(var, 0), tail)


def is_accurate(sums: Sums, center: jax.Array) -> jax.Array:
    """Returns where the centre is within 30 standard deviations of the mean.

    The variance is then correct to about 1e-4: the rounding of the few values that are
    summed is magnified a thousand times at most. A constant channel is accurate if the
    centre is its value up to rounding.
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
    """Returns the memory after one more step.

    Args:
      memory: the memory of the steps before.
      sums: the sums of the last step.
      center: the centre of these sums.
      decay: the factor by which each step reduces the weight of older ones, in [0, 1).
      share: the weight of the last step among all: `1 / sum over steps of decay^age`.
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
    """Returns the memory of all devices except this one, `[devices, C]`.

    By the law of total variance, the squares about the mean of all devices are the sum
    of this device's squares and those of the others.
    """
    count = everyone.count - own.count
    # If there are no other devices, the counts may differ by rounding.
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
