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
matrix. The rule therefore costs `2 K / C` of the work of the kernel's gradient more
than that of two layers, and saves `x`, which is `C / K` times the size of the inputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbn._core import affine, derivative, reduction

# The numbers are multiplied in bfloat16, and the products added in float32. Transposed
# products inherit this.
_ALGORITHMS = {jnp.dtype(jnp.bfloat16): jax.lax.DotAlgorithmPreset.BF16_BF16_F32}


class Product(NamedTuple):
    """The factors of `x`, both in its dtype."""

    inputs: jax.Array  # [N, ..., K]
    kernel: jax.Array  # [K, C]

    def value(self) -> jax.Array:
        """Returns `x`, `[N, ..., C]`."""
        return self.inputs @ self.kernel


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
        known = derivative.FromX(kept.product.value(), *kept[1:])
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
        # Elsewhere the result is the bias if it is not finite.
        keep = mask | jnp.all(jnp.isfinite(inputs), -1, keepdims=True)
        inputs, dinputs = (jnp.where(keep, part, 0) for part in (inputs, dinputs))
        counted, dcounted = (jnp.where(mask, part, 0) for part in (inputs, dinputs))

    def multiplied(positions: jax.Array, matrix: jax.Array) -> jax.Array:
        contracted = ((positions.ndim - 1,), (0,))
        return _dot(positions, matrix, contracted, narrow)

    def inner(positions: jax.Array) -> jax.Array:
        axes = tuple(range(positions.ndim - 1))
        return _dot(counted, positions, (axes, axes), narrow)

    def summed(positions: jax.Array) -> jax.Array:
        return jnp.sum(positions, range(positions.ndim - 1))

    highest = jax.lax.Precision.HIGHEST

    def small(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision=highest)

    sum_dx = small(summed(dcounted), kernel) + small(summed(counted), dkernel)
    by_k = small(inner(dcounted), kernel) + small(inner(counted), dkernel)
    sum_x_dx = jnp.sum(kernel * by_k, 0)
    mean_dx, mean_x_dx = derivative.means(settings, count, sum_dx, sum_x_dx)
    mean_product = mean_x_dx - mean * mean_dx - tail * mean_dx
    slope = scale / std
    # Where std is infinite, x_hat is 0, and the products may have overflowed.
    p = jnp.where(jnp.isinf(std), 0, (dscale - slope * (mean_product / std)) / std)
    q = dbias - slope * mean_dx - mean * p - tail * p
    dz = multiplied(dinputs, slope[None] * kernel)
    dz = dz + multiplied(inputs, slope[None] * dkernel + p[None] * kernel)
    expand = affine.expander(settings.feature_axes, dz)
    if keep is None:
        return dz + expand(q)
    return jnp.where(keep, dz + expand(q - dbias), 0) + expand(dbias)


def _dot(a, b, contracted, narrow):
    """Returns a product of wide arrays, with factors rounded to bfloat16 if narrow."""
    return jax.lax.dot_general(
        a, b, (contracted, ((), ())), precision=_ALGORITHMS.get(narrow)
    )
