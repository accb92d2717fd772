"""Mean and variance of the elements that one device holds, in several forms.

Five forms of the variance, one function each, keep one contract: within 1e-4 of the
true one for |mean|/std up to 1e4 ("fast" excepted). Which is cheapest depends on the
platform:

- "fast", `E[x^2] - E[x]^2`: one pass, but it loses `(mean/std)^2` of its precision.
- "checked": the same, and a second pass, about the mean that is then known, only where
  some channel shows that it lost too much. One collective as a rule under jit. For a
  CPU, where a pass costs most, and for a TPU where x is too large for its fast memory;
  a conditional keeps x out of a TPU's fast memory, and outside of CUDA graphs it makes
  a GPU wait for the host.
- "two_pass": the second pass always.
- "sliced": two passes, the second of which adds slices of x before it sums, which a TPU
  does in half the time. For a TPU where x is small and may stay in fast memory.
- "shifted": one pass over `x - s`, s the mean of a k-th part of x. By Cauchy-Schwarz
  `|mean - s|^2 <= k * var` whatever x holds, so no more than a factor k is lost. For a
  GPU, which reads x once and needs no conditional; a TPU would have to read x once more
  than the convolution that makes it.

Each takes the axes to reduce, the dtype of the moments, `x` with zeros outside the
mask, the mask or None, and the count; and gives mean, variance and tail of the mean.

`jax.export` may trace an array whose sizes are symbols instead of integers. A form that
depends on a size then makes the choice that is right for every size.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxbn.core import barriers, moments, reduction

# Up to this many bytes a second pass costs a TPU less than a conditional, which would
# keep x out of fast memory (VMEM). Chosen by compiling ResNet-50 for a v5e with 16, 25
# and 50 MB.
_FAST_MEMORY = 25 * 2**20

# How many slices a TPU adds before it sums. With more it makes several kernels.
_SLICES = 8

# "shifted" takes its shift from at least a 64th of x.
_PARTS = 64

# The binary logarithm of more elements than an array of symbolic size will have. Scaled
# by so much, means below 1e-28 are rounded; the squares of such values are 0 anyway.
_MANY = 32

# Mean, variance, and what the mean rounds away.
Parts = tuple[jax.Array, jax.Array, jax.Array]


def auto(axes, dtype, x, mask, count) -> Parts:
    """The stable form that is cheapest where the program runs."""
    size = _bytes_on_a_device(x)
    small = isinstance(size, int) and size <= _FAST_MEMORY
    tpu = sliced if small else checked
    return _on_platform(axes, dtype, x, mask, count, cpu=checked, tpu=tpu)


def unconditional(axes, dtype, x, mask, count) -> Parts:
    """The cheapest stable form that has no conditional."""
    return _on_platform(axes, dtype, x, mask, count, cpu=two_pass, tpu=sliced)


def _on_platform(axes, dtype, x, mask, count, **forms) -> Parts:
    forms |= {"cuda": shifted, "rocm": shifted, "default": two_pass}
    bound = {name: functools.partial(form, axes, dtype) for name, form in forms.items()}
    return jax.lax.platform_dependent(x, mask, count, **bound)


def _bytes_on_a_device(x: jax.Array) -> int:
    """Of `x`: all of it unless a mesh of Explicit axes says how it is split."""
    shards = math.prod(reduction.explicit_shards(x, axis) for axis in range(x.ndim))
    return x.size * x.dtype.itemsize // shards


def fast(axes, dtype, x, mask, count) -> Parts:
    """`E[x^2] - E[x]^2`, however much precision that loses."""
    del mask  # Elements outside it are 0 already.
    one, other = (part.astype(dtype) for part in barriers.widened_alone(x, x))
    mean = _mean(one, axes, count)
    square = _mean(moments.abs_square(other), axes, count)
    var = jnp.maximum(square - moments.abs_square(mean), 0)
    return mean, var, jnp.zeros_like(mean)


def checked(axes, dtype, x, mask, count) -> Parts:
    """The fast form, and a second pass where that lost too much."""
    mean, var, tail = fast(axes, dtype, x, mask, count)

    def again() -> Parts:
        # Where the sum overflowed the squares do so too, about any centre.
        center = jnp.where(jnp.isfinite(mean), mean, 0)
        return _centered(axes, dtype, x, mask, count, center)

    enough = moments.well_conditioned(mean, var)
    return jax.lax.cond(enough, lambda: (mean, var, tail), again)


def two_pass(axes, dtype, x, mask, count) -> Parts:
    """The mean, then moments about it."""
    one, other = barriers.widened_alone(x, x)
    center = _scaled_mean(one.astype(dtype), axes, count)
    return _centered(axes, dtype, other, mask, count, center)


def sliced(axes, dtype, x, mask, count) -> Parts:
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
        return two_pass(axes, dtype, x, mask, count)
    center = _scaled_mean(x.astype(dtype), axes, count)
    expanded = jnp.expand_dims(center, axes)

    def split(array: jax.Array) -> list[jax.Array]:
        varies = array.shape[whole[0]] > 1
        return jnp.split(array, slices, whole[0]) if varies else [array] * slices

    # Splitting comes first. Differences that are split afterwards would be stored.
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
    """The sum of the arrays, added in pairs."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        odd = parts[-1:] if len(parts) % 2 else []
        parts = [a + b for a, b in pairs] + odd
    return parts[0]


def shifted(axes, dtype, x, mask, count) -> Parts:
    """Moments about the mean of a part of x: of a few places of every example.

    Not of a few examples, which a batch sharded under jit would have to send to all
    devices. Masks, under which the part may hold nothing, and arrays without spatial
    axes, or with symbolic sizes of these, take two passes.
    """
    spatial = [a for a in axes[1:] if reduction.explicit_shards(x, a) == 1]
    known = all(isinstance(x.shape[a], int) for a in spatial)
    if mask is not None or not spatial or x.size == 0 or not known:
        return two_pass(axes, dtype, x, mask, count)
    part, parts = x, _PARTS
    for axis in spatial:
        size = math.ceil(x.shape[axis] / parts)
        part = jax.lax.slice_in_dim(part, 0, size, axis=axis)
        parts = max(1, parts * size // x.shape[axis])
    center = _mean(part.astype(dtype), axes, count * (part.size / x.size))
    # Where that sum overflowed the squares do so too, about any centre.
    center = jnp.where(jnp.isfinite(center), center, 0)
    return _centered(axes, dtype, x, None, count, center)


def _centered(axes, dtype, x, mask, count, center) -> Parts:
    """Moments about a known centre: one pass over x."""
    # XLA:CPU would store a difference that two sums share, so each has its own. Other
    # platforms make one of the two.
    other, unshared = barriers.unshared(x, center)
    left = x.astype(dtype) - jnp.expand_dims(center, axes)
    right = other.astype(dtype) - jnp.expand_dims(unshared, axes)
    if mask is not None:
        left, right = jnp.where(mask, left, 0), jnp.where(mask, right, 0)
    offset = _mean(left, axes, count)
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
    known = isinstance(number, int)
    scale = 2.0 ** (math.ceil(math.log2(max(number, 1))) if known else _MANY)
    wide = values.astype(reduction.reduction_dtype(values.dtype))
    total = jnp.sum(wide * (1 / scale), axes)
    return (total * (scale / jnp.maximum(count, 1))).astype(values.dtype)


FORMS = {
    "auto": auto,
    "unconditional": unconditional,
    "fast": fast,
    "checked": checked,
    "two_pass": two_pass,
    "sliced": sliced,
    "shifted": shifted,
}
