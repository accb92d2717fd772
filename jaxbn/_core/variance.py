"""Moments of the elements that one device holds, or of a whole array under jit.

    count = sum(mask),  mean = sum(mask * x) / count
    var = sum(mask * |x - mean|^2) / count

There are six forms of the variance, one function each. All but "fast" are within 1e-4
of the true variance for |mean|/std up to 1e4; `exact_sums` tells the one exception of
"exact". The platform decides which form is cheapest:

- "fast", `E[x^2] - E[x]^2`: one pass, but rounding errors grow by `(mean/std)^2`.
- "checked": the fast form, and a second pass about its mean only if some channel lost
  too much precision. Under jit it usually takes one collective. It suits a CPU, where a
  pass costs most, and a TPU if a float32 x is too large for its fast memory. Its
  conditional keeps x out of that memory. Outside of CUDA graphs it makes a GPU wait for
  the host.
- "exact": one pass over half-precision x, whose sums are not rounded. It suits a TPU,
  which computes the sums in the kernel that computes x.
- "two_pass": always a second pass.
- "sliced": two passes. The second one adds slices of x before it sums, which a TPU does
  in half the time. It suits a TPU if x is small enough to stay in fast memory.
- "shifted": one pass over `x - s`, where s is the mean of a k-th part of x. By
  Cauchy-Schwarz `|mean - s|^2 <= k * var` for every x, so rounding errors grow by at
  most k. It suits a GPU, which reads x once and needs no conditional. A TPU would have
  to read x again after the convolution that computes it.

The function of each form takes the axes to reduce, the dtype of the moments, `x` with
zeros outside the mask, the mask or None, and the count. It returns mean, variance and
tail of the mean.

`jax.export` may trace an array whose sizes are symbols instead of integers. A form that
depends on a size then makes the choice that is right for every size.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxbn._core import barriers, exact_sums, moments, reduction

# Up to this many bytes a second pass costs a TPU less than a conditional, which would
# keep x out of fast memory (VMEM). The limit was chosen by compiling ResNet-50 for a
# v5e with 16, 25 and 50 MB.
_FAST_MEMORY = 25 * 2**20

# The largest number of slices. With more, a TPU needs several kernels.
_SLICES = 8

# "shifted" computes its shift from at least a 64th of x.
_PARTS = 64

# An array of symbolic size is assumed to have at most 2**32 elements. Scaling by this
# number rounds means below 1e-28, but the squares of such values are 0 anyway.
_MANY = 32

# Mean, variance and tail; the tail is the part that the mean rounds away.
Parts = tuple[jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
# Without jit an eager `lax.cond` would compile its branches at every call. An outer
# jit inlines this one, and traces it once for all layers of one shape.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def local_moments(
    settings: reduction.Settings, x: jax.Array, mask: jax.Array | None
) -> moments.Moments:
    """Computes the moments of the elements that this device (or global array) holds.

    Args:
      settings: axes, form and dtype; the devices in it are not used.
      x: `[N, ..., C]`.
      mask: boolean of the rank of `x` that broadcasts to it, or None.

    Returns:
      `Moments`, `[C]` each. The count has size 1 on axes along which the mask does not
      vary.
    """
    axes = reduction.reduction_axes(x.ndim, settings.feature_axes)
    dtype = jnp.dtype(settings.dtype or reduction.reduction_dtype(x.dtype))
    if mask is not None:  # This comes first, or masked NaN would reach derivatives.
        x = jnp.where(mask, x, 0)
    count = _count(x, axes, mask)
    form = FORMS[settings.variance]
    return moments.Moments(count, *form(axes, dtype, x, mask, count))


@local_moments.defjvp
def _local_moments_jvp(settings, primals, tangents):
    x, mask = primals
    computed = local_moments(settings, x, mask)
    tangent = jax.checkpoint(
        functools.partial(_tangent, settings),
        policy=jax.checkpoint_policies.nothing_saveable,
        prevent_cse=False,
    )
    dmean, dvar = tangent(x, mask, computed, tangents[0])
    zeros = jax.tree.map(jnp.zeros_like, computed)
    return computed, zeros._replace(mean=dmean, var=dvar)


def _tangent(settings, x, mask, computed, dx):
    """Returns the tangents of mean and variance.

    They are `mean(dx)` and `2 mean(Re(conj(x - mean) dx))`.
    """
    axes = reduction.reduction_axes(x.ndim, settings.feature_axes)
    wide = computed.mean.dtype
    if mask is not None:
        x = jnp.where(mask, x, 0)
    centered = x.astype(wide) - jnp.expand_dims(computed.mean, axes)
    centered = centered - jnp.expand_dims(computed.tail, axes)
    dx = dx.astype(wide)
    if mask is not None:  # This precedes the product, or NaN would reach derivatives.
        dx = jnp.where(mask, dx, 0)
    product = (jnp.conj(centered) * dx).real
    divisor = jnp.maximum(computed.count, 1)
    dmean = (jnp.sum(dx, axes) / divisor).astype(wide)
    return dmean, (2 * jnp.sum(product, axes) / divisor).astype(computed.var.dtype)


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


def auto(axes, dtype, x, mask, count) -> Parts:
    """Computes the stable form that is cheapest where the program runs."""
    if exact_sums.applies(axes, dtype, x, mask is not None):
        tpu = exact
    else:
        size = _bytes_on_a_device(x)
        small = isinstance(size, int) and size <= _FAST_MEMORY
        tpu = sliced if small else checked
    return _on_platform(axes, dtype, x, mask, count, cpu=checked, tpu=tpu)


def unconditional(axes, dtype, x, mask, count) -> Parts:
    """Computes the cheapest stable form that has no conditional."""
    return _on_platform(axes, dtype, x, mask, count, cpu=two_pass, tpu=exact)


def _on_platform(axes, dtype, x, mask, count, **forms) -> Parts:
    forms |= {"cuda": shifted, "rocm": shifted, "default": two_pass}
    bound = {name: functools.partial(form, axes, dtype) for name, form in forms.items()}
    return jax.lax.platform_dependent(x, mask, count, **bound)


def _bytes_on_a_device(x: jax.Array) -> int:
    """Returns the bytes of `x` on one device.

    A split over Auto axes is not known. If `jax.set_mesh` has set a mesh, x is assumed
    to be split over all its Auto axes, because a batch usually is.
    """
    shards = math.prod(reduction.explicit_shards(x, axis) for axis in range(x.ndim))
    shards *= reduction.auto_shards()
    return x.size * x.dtype.itemsize // shards


def fast(axes, dtype, x, mask, count) -> Parts:
    """Computes `E[x^2] - E[x]^2`, without a check of its precision."""
    del mask  # Elements outside it are 0 already.
    one, other = (part.astype(dtype) for part in barriers.widened_alone(x, x))
    mean = _mean(one, axes, count)
    square = _mean(moments.abs_square(other), axes, count)
    var = jnp.maximum(square - moments.abs_square(mean), 0)
    return mean, var, jnp.zeros_like(mean)


def checked(axes, dtype, x, mask, count) -> Parts:
    """Computes the fast form, and makes a second pass if it is not precise enough."""
    mean, var, tail = fast(axes, dtype, x, mask, count)

    def again() -> Parts:
        # If the sum overflowed, the squares overflow about any centre.
        center = jnp.where(jnp.isfinite(mean), mean, 0)
        return _centered(axes, dtype, x, mask, count, center)

    enough = moments.well_conditioned(mean, var)
    return jax.lax.cond(enough, lambda: (mean, var, tail), again)


def exact(axes, dtype, x, mask, count) -> Parts:
    """Computes the moments from sums that are not rounded.

    Where `exact_sums` has none, as for float32, it takes "sliced" instead.
    """
    if not exact_sums.applies(axes, dtype, x, mask is not None):
        return sliced(axes, dtype, x, mask, count)
    return exact_sums.mean_and_variance(axes, x, mask, count)


def two_pass(axes, dtype, x, mask, count) -> Parts:
    """Computes the mean, then the moments about it."""
    one, other = barriers.widened_alone(x, x)
    center = _scaled_mean(one.astype(dtype), axes, count)
    return _centered(axes, dtype, other, mask, count, center)


def sliced(axes, dtype, x, mask, count) -> Parts:
    """Makes two passes; the second one adds slices of a spatial axis before it sums.

    A TPU adds arrays several times as fast as it sums over them. The batch is not
    sliced, because it may be sharded.
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

    # XLA would store the differences if they were split after the subtraction.
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
    """Returns the sum of the arrays, added in pairs."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        odd = parts[-1:] if len(parts) % 2 else []
        parts = [a + b for a, b in pairs] + odd
    return parts[0]


def shifted(axes, dtype, x, mask, count) -> Parts:
    """Computes moments about the mean of a part of x: a few places of every example.

    A few whole examples would not do, because a batch that is sharded under jit would
    have to send them to all devices. It makes two passes with a mask, because the part
    may hold no valid element, and without spatial axes of known size.
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
    # If the sum overflowed, the squares overflow about any centre.
    center = jnp.where(jnp.isfinite(center), center, 0)
    return _centered(axes, dtype, x, None, count, center)


def _centered(axes, dtype, x, mask, count, center) -> Parts:
    """Computes moments about a known centre in one pass over x."""
    # XLA:CPU would store a difference that two sums share, so each sum has its own.
    # Other platforms merge the two differences.
    other, unshared = barriers.unshared(x, center)
    left = x.astype(dtype) - jnp.expand_dims(center, axes)
    right = other.astype(dtype) - jnp.expand_dims(unshared, axes)
    if mask is not None:
        left, right = jnp.where(mask, left, 0), jnp.where(mask, right, 0)
    offset = _mean(left, axes, count)
    square = _mean(moments.abs_square(right), axes, count)
    return moments.about(center, offset, square)


def _mean(values: jax.Array, axes: tuple[int, ...], count: jax.Array) -> jax.Array:
    """Returns the mean in the dtype of the values, summed in float32 or wider."""
    total = jnp.sum(values, axes, dtype=reduction.reduction_dtype(values.dtype))
    return (total / jnp.maximum(count, 1)).astype(values.dtype)


def _scaled_mean(values: jax.Array, axes: tuple[int, ...], count: jax.Array):
    """Returns the mean, even if the sum of the values would overflow.

    The values are scaled by a power of two, so that nothing is rounded. The scaling
    costs time on a CPU.
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
    "exact": exact,
    "two_pass": two_pass,
    "sliced": sliced,
    "shifted": shifted,
}
