"""The derivative rule where `x` is a product: the backward pass needs no `x`.

A Dense layer or a 1x1 convolution computes `x = inputs @ kernel`, with inputs
`[N, ..., K]` and a kernel `[K, C]`. Its gradient keeps the inputs in any case, and they
contain what the rule of `derivative` takes from `x`. With `G = inputs^T inputs` and
`H = inputs^T dinputs`, both `[K, K]` sums over all positions,

    sum(dx) = sum(dinputs) @ kernel + sum(inputs) @ dkernel
    sum(x * dx) = sum_k kernel * (H @ kernel + G @ dkernel)
    dz = dinputs @ (slope * kernel) + inputs @ (slope * dkernel + p * kernel) + q

per channel, with `p` and `q` as in `derivative`. The transpose takes one product
`D = inputs^T dz`, `[K, C]`, from which follow the gradients of kernel and scale. The
gradient of the inputs is `dz @ (slope * kernel)^T`, plus the inputs times a `[K, K]`
matrix. The extra work is `2 K / C` times the work of the kernel's gradient. The rule
does not store `x`, which is `C / K` times as large as the inputs.

Where the mean of `x` is large, `sum(x * dx)` cancels. The relative error of the
gradients is then up to 5e-6 times |mean|/std in float32.

In half precision `x` is rounded, and these sums are not. They are taken about the mean
of the rounded `x`, which differs a little from theirs. Where all `dz` are nearly equal,
the gradient of the scale is therefore wrong by up to 2^-7 `sqrt(sum(dz^2))`. A sum over
the inputs would give the right mean, but with it ResNet-50 took a TPU 5 % more cycles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbn._core import affine, derivative, reduction


class Product(NamedTuple):
    """The factors of `x`, both in its dtype."""

    inputs: jax.Array  # [N, ..., K]
    kernel: jax.Array  # [K, C]

    def value(self) -> jax.Array:
        """Returns `x`, `[N, ..., C]`."""
        return multiplied(self.inputs, self.kernel, None)


class FromProduct(NamedTuple):
    """The arguments of `from_product` that the backward pass keeps."""

    product: Product
    mask: jax.Array | None  # [N, ..., 1], the same for all channels.
    center: affine.Center
    scale: jax.Array
    bias: jax.Array
    residual: jax.Array | None  # As in `derivative.FromX`, and so is y.
    y: jax.Array | None


def from_product(
    settings: reduction.Settings,
    output: affine.Output,
    kept: FromProduct,
    count: jax.Array,
    tangents: derivative.Tangents,
) -> jax.Array:
    """Returns the tangent of the output, in its shape and dtype.

    Args:
      settings: as in `derivative.from_x`; the last axis is the channel axis.
      output: as in `derivative.from_x`.
      kept: the arguments that the backward pass keeps.
      count: the number of values per channel, of all devices.
      tangents: as in `derivative.from_x`, but `x` is a `Product` of tangents.
    """
    with jax.named_scope("jaxbn.tangent"):
        dz = _affine_tangent(settings, kept, count, tangents)
        if tangents.residual is not None:
            dz = dz + tangents.residual.astype(dz.dtype)
        known = derivative.FromX(
            kept.product.value(),
            kept.mask,
            kept.center,
            kept.scale,
            kept.bias,
            kept.residual,
            kept.y,
        )
        return derivative.times_gain(settings, output, known, dz)


def _affine_tangent(settings, kept, count, tangents):
    """Returns the tangent of `x_hat * scale + bias`."""
    (inputs, kernel), mask, center, scale, bias, *_ = kept
    narrow, wide = inputs.dtype, affine.wide_dtype(inputs, scale, bias)
    mean, tail, std = center
    inputs, kernel, dinputs, dkernel, dscale, dbias, scale = (
        part.astype(wide)
        for part in (
            inputs,
            kernel,
            *tangents.x,
            tangents.scale,
            tangents.bias,
            scale,
        )
    )
    keep, counted, dcounted = None, inputs, dinputs
    if mask is not None:
        # Outside the mask, a result that is not finite was replaced by the bias.
        keep = mask | jnp.all(jnp.isfinite(inputs), -1, keepdims=True)
        inputs, dinputs = (jnp.where(keep, part, 0) for part in (inputs, dinputs))
        counted, dcounted = (jnp.where(mask, part, 0) for part in (inputs, dinputs))

    sum_dx = _small(_summed(dcounted), kernel) + _small(_summed(counted), dkernel)
    gram = inner(counted, counted, narrow)
    dgram = inner(counted, dcounted, narrow)
    by_k = _small(dgram, kernel) + _small(gram, dkernel)
    sum_x_dx = jnp.sum(kernel * by_k, 0)
    mean_dx, mean_x_dx = derivative.means(settings, count, sum_dx, sum_x_dx)
    mean_product = mean_x_dx - mean * mean_dx - tail * mean_dx
    slope = scale / std
    # Where std is infinite, x_hat is 0, and the products may have overflowed.
    p = jnp.where(jnp.isinf(std), 0, (dscale - slope * (mean_product / std)) / std)
    q = dbias - slope * mean_dx - mean * p - tail * p
    dz = multiplied(dinputs, slope[None] * kernel, narrow)
    dz = dz + multiplied(inputs, slope[None] * dkernel + p[None] * kernel, narrow)
    expand = affine.expander(settings.feature_axes, dz)
    if keep is None:
        return dz + expand(q)
    return jnp.where(keep, dz + expand(q - dbias), 0) + expand(dbias)


def _summed(positions: jax.Array) -> jax.Array:
    return jnp.sum(positions, range(positions.ndim - 1))


def _small(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns a product of arrays of channels, without a loss of precision."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def multiplied(
    inputs: jax.Array, kernel: jax.Array, dtype: jnp.dtype | None
) -> jax.Array:
    """Returns `inputs @ kernel`, `[N, ..., C]`, in the dtype of both.

    If `dtype` is bfloat16, wide factors are rounded to it.
    """

    def dot(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return _dot(inputs, kernel, ((inputs.ndim - 1,), (0,)), dtype)

    def convolution(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        images = _dimensions(inputs, batch=0, features=-1)
        kernel = jnp.expand_dims(kernel, range(1, inputs.ndim - 1))
        factors = _dimensions(inputs, batch=-1, features=0)
        return _convolve(inputs, kernel, (images, factors, images), dtype)

    return _by_platform(dot, convolution, inputs, kernel)


def inner(left: jax.Array, right: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
    """Returns the sum over all positions of `left^T right`, `[K, C]`."""

    def dot(left: jax.Array, right: jax.Array) -> jax.Array:
        positions = tuple(range(left.ndim - 1))
        return _dot(left, right, (positions, positions), dtype)

    def convolution(left: jax.Array, right: jax.Array) -> jax.Array:
        # Each channel is an image, and each example one of its features. The window
        # has the size of the image, as in the gradient of a kernel.
        swapped = _dimensions(left, batch=-1, features=0)
        result = _dimensions(left, batch=0, features=-1)
        sums = _convolve(left, right, (swapped, swapped, result), dtype)
        return sums.reshape(left.shape[-1], right.shape[-1])

    return _by_platform(dot, convolution, left, right)


def _by_platform(dot, convolution, left, right):
    """Computes a product. For images on a TPU it uses a convolution.

    The convolutions of a TPU arrange images in another order than its products of
    matrices do, and the images would be copied.
    """
    if left.ndim == 2:
        return dot(left, right)
    return jax.lax.platform_dependent(left, right, tpu=convolution, default=dot)


def _dot(left, right, contracted, dtype):
    precision = None
    if dtype == jnp.bfloat16:
        precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32
    return jax.lax.dot_general(left, right, (contracted, ((), ())), precision=precision)


def _convolve(left, right, dimensions, dtype):
    # A TPU rounds to bfloat16 by default, and adds in float32.
    precision = jax.lax.Precision.DEFAULT if dtype == jnp.bfloat16 else None
    return jax.lax.conv_general_dilated(
        left,
        right,
        window_strides=(1,) * (left.ndim - 2),
        padding="VALID",
        dimension_numbers=jax.lax.ConvDimensionNumbers(*dimensions),
        precision=precision,
    )


def _dimensions(images, batch, features):
    """Returns the axes of batch and features, then those of the positions."""
    last = images.ndim - 1
    return batch % images.ndim, features % images.ndim, *range(1, last)
