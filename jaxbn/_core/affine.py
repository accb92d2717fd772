"""The output of the op: an affine map of every channel, a residual, an activation.

std = sqrt(var + epsilon),  x_hat = (x - mean) / std,  slope = scale / std
y = activation(x_hat * scale + bias + residual)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbn._core import moments, reduction

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}

# Activations whose derivative follows from the sign of their output, and their slope
# below 0.
NEGATIVE_SLOPES: dict[str | None, float] = {
    None: 1.0,
    "relu": 0.0,
    "leaky_relu": 0.01,
}

# Beyond this absolute value silu and gelu have the value and the derivative of ReLU.
# Its cube, which occurs in gelu, is still finite.
SATURATED = 1e4

# Activations whose input can be computed from the output, as `in_place` does.
INVERTIBLE = tuple(name for name, slope in NEGATIVE_SLOPES.items() if slope)

# A function of the moments of the batch and of other arrays. It returns two constants,
# `gain` and `shift`, `[C]` each; scale and bias are applied to `gain * x_hat + shift`.
# Batch Renormalization makes such a correction (Ioffe, arXiv:1702.03275).
Correct = Callable[[moments.Moments, Any], tuple[jax.Array, jax.Array]]


class Output(NamedTuple):
    """The settings of the output; hashable, so that `jit` can take them as static."""

    epsilon: float
    dtype: jnp.dtype  # The dtype of y.
    activation: str | None = None  # One of ACTIVATIONS.
    in_place: bool = False  # Keep y instead of x; activation in INVERTIBLE.
    correct: Correct | None = None  # None: no correction.


class Center(NamedTuple):
    """The centre and the divisor of every channel, `[C]` each."""

    mean: jax.Array
    tail: jax.Array  # The part that `mean` rounds away.
    std: jax.Array  # Infinite where x_hat is 0; see `center_of`.


def center_of(
    mean: jax.Array, var: jax.Array, tail: jax.Array | float, epsilon: float
) -> Center:
    """Returns the centre and the divisor for given statistics.

    A channel without variance, or with a variance that overflows, is centred at 0 and
    divided by infinity. A finite `x` then gives a finite result.

    It returns the divisor and not its reciprocal. XLA:CPU computes `scale / std` once
    per channel, but would compute a product with the reciprocal again for every
    element.
    """
    var = var.astype(reduction.reduction_dtype(var.dtype)) + epsilon
    std = jnp.sqrt(jnp.where(var <= 0, jnp.inf, var))
    flat = jnp.isinf(std)
    tail = jnp.where(flat, 0, tail).astype(mean.dtype)
    return Center(jnp.where(flat, 0, mean), tail, std)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def apply(
    output: Output,
    feature_axes: tuple[int, ...],
    x: jax.Array,
    mask: jax.Array | None,
    center: Center,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
) -> jax.Array:
    """Returns the output, `[N, ..., C]`, in the dtype that `output` specifies."""
    with jax.named_scope("jaxbn.normalize"):
        z = before_activation(feature_axes, x, mask, center, scale, bias, residual)
        return activation(output, mask)(z).astype(output.dtype)


def before_activation(
    feature_axes, x, mask, center, scale, bias, residual
) -> jax.Array:
    """Computes the input of the activation, in float32 or wider.

    Elements outside the mask become the bias if their result is not finite.
    """
    wide, expand = wide_dtype(x, scale, bias), expander(feature_axes, x)
    slope, bias = scale.astype(wide) / center.std, bias.astype(wide)
    centered = x.astype(wide) - expand(center.mean)

    def combined(centered: jax.Array) -> jax.Array:
        z = centered * expand(slope) + expand(bias)
        return z if residual is None else z + residual.astype(wide)

    if mask is None:
        return combined(centered)
    # The derivative of a product multiplies its operands by a gradient that is 0 here,
    # and 0 times NaN is NaN. So the operand is replaced. The result is replaced too,
    # because it may still overflow.
    finite = jnp.isfinite(centered)
    z = combined(jnp.where(mask | finite, centered, 0))
    return jnp.where(mask | (finite & jnp.isfinite(z)), z, expand(bias))


def activation(
    output: Output, mask: jax.Array | None = None
) -> Callable[[jax.Array], jax.Array]:
    """Returns the function of the activation; the identity if there is none.

    With a mask, the derivatives of the function are finite for every finite `z`.
    Elements outside the mask may be huge, and the derivatives of silu and gelu are then
    products of 0 and infinity.
    """
    if output.activation is None:
        return lambda z: z
    function = ACTIVATIONS[output.activation]
    if mask is None or output.activation in NEGATIVE_SLOPES:
        return function

    def saturating(z: jax.Array) -> jax.Array:
        saturated = jnp.abs(z) > SATURATED
        return jnp.where(
            saturated, jax.nn.relu(z), function(jnp.where(saturated, 0, z))
        )

    return saturating


def wide_dtype(*arrays: jax.Array) -> jnp.dtype:
    """Returns the dtype in which the arrays are combined: float32 or wider."""
    return reduction.reduction_dtype(jnp.result_type(*arrays))


def expander(
    feature_axes: tuple[int, ...], x: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that gives `[C]` arrays the rank of `x`."""
    axes = reduction.reduction_axes(x.ndim, feature_axes)
    return lambda array: jnp.expand_dims(array, axes)
