"""The derivative rule: one tangent, linear in its inputs, for every mode and order.

With `slope = scale / std` and `mean_all`, the mean over mask and devices,

    P = dscale - slope * mean_all(x_hat * dx)
    Q = dbias - slope * mean_all(dx)
    dz = slope * dx + x_hat * P + Q,  dy = activation'(z) * (dz + dresidual)

The transpose is the paper's simplified backward pass (Section 3). It takes the sums of
`dz` and `x_hat * dz`, one collective for both, and one pass that computes `dx`. In the
code `p` is the factor of `x` that comes from P, and `q` is the part of P and Q that is
constant per channel.

`from_x` computes `x_hat` from the input, and `from_y` computes it from the output (Rota
Bulo et al., 2018).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbn._core import affine, barriers, collectives, reduction


class Tangents(NamedTuple):
    """The tangents of the arguments of the op."""

    x: jax.Array
    scale: jax.Array
    bias: jax.Array
    residual: jax.Array | None


class FromX(NamedTuple):
    """The arguments of `from_x` that the backward pass keeps."""

    x: jax.Array
    mask: jax.Array | None
    center: affine.Center
    scale: jax.Array
    bias: jax.Array
    residual: jax.Array | None  # Given if the derivative of the activation needs z.
    y: jax.Array | None  # Given instead if its sign determines that derivative.


class FromY(NamedTuple):
    """The arguments of `from_y` that the backward pass keeps."""

    y: jax.Array
    mask: jax.Array | None
    std: jax.Array
    scale: jax.Array
    bias: jax.Array
    residual: jax.Array | None


def from_x(
    settings: reduction.Settings,
    output: affine.Output,
    kept: FromX,
    count: jax.Array,
    tangents: Tangents,
) -> jax.Array:
    """Returns the tangent of the output, in its shape and dtype."""
    with jax.named_scope("jaxbn.tangent"):
        dz = _affine_tangent(settings, kept, count, tangents)
        if tangents.residual is not None:
            dz = dz + tangents.residual.astype(dz.dtype)
        return times_gain(settings, output, kept, dz)


def needs_residual(output: affine.Output) -> bool:
    """Returns whether the derivative of the activation needs z, and so the residual."""
    return output.activation not in affine.NEGATIVE_SLOPES


def _affine_tangent(settings, kept, count, tangents):
    """Returns the tangent of `x_hat * scale + bias`."""
    x, mask, scale = kept.x, kept.mask, kept.scale
    mean, tail, std = kept.center
    wide = affine.wide_dtype(x, scale, kept.bias)
    expand = affine.expander(settings.feature_axes, x)
    dx, dscale, dbias = _widened(tangents, wide)
    slope = scale.astype(wide) / std
    # XLA:CPU stores a difference that a sum shares with other results, so there are two
    # differences, of opposite sign. The backward pass sums over the one times `p`.
    other, shift = barriers.unshared(x, mean)
    centered = x.astype(wide) - expand(mean)
    negated = expand(shift) - other.astype(wide)
    keep = None
    if mask is not None:
        # Elements outside the mask whose result is not finite became the bias.
        keep = mask | jnp.isfinite(centered * expand(slope))
        # Tangents there may be NaN too. All are replaced before they are multiplied,
        # because the derivative of a product multiplies by each operand.
        centered, negated, dx = (
            jnp.where(keep, each, 0) for each in (centered, negated, dx)
        )
    mean_dx, mean_product = _mean_all(settings, mask, count, dx, centered)
    mean_product = mean_product - (jnp.conj(tail) * mean_dx).real
    # Where std is infinite, x_hat is 0, and `mean_product` may have overflowed.
    p = jnp.where(jnp.isinf(std), 0, (dscale - slope * (mean_product / std)) / std)
    # Negating `p` costs nothing; negating the product would make the transpose negate
    # every element of dy.
    dz = expand(slope) * dx + negated * expand(-p)
    q = -(slope * mean_dx + tail * p)
    if keep is None:
        return dz + expand(dbias + q)
    return jnp.where(keep, dz + expand(q), 0) + expand(dbias)


def times_gain(
    settings: reduction.Settings, output: affine.Output, kept: FromX, dz: jax.Array
) -> jax.Array:
    """Returns `dz` times the activation's derivative, in the dtype of the output."""
    if output.activation is None:
        return dz.astype(output.dtype)
    z = kept.y
    if z is None:
        z = affine.before_activation(
            settings.feature_axes,
            kept.x,
            kept.mask,
            kept.center,
            kept.scale,
            kept.bias,
            kept.residual,
        )
    if needs_residual(output):
        if kept.mask is None:
            z = jnp.clip(z, -affine.SATURATED, affine.SATURATED)
        function = affine.activation(output, kept.mask)
        return jax.jvp(function, (z,), (dz,))[1].astype(output.dtype)
    # The cast comes first, so that the backward pass masks `dy` in its own dtype in the
    # kernel that computes it.
    dz = dz.astype(output.dtype)
    if output.activation == "relu":
        return jnp.where(z > 0, dz, 0)
    return jnp.where(z >= 0, dz, affine.NEGATIVE_SLOPES[output.activation] * dz)


def from_y(
    settings: reduction.Settings,
    output: affine.Output,
    kept: FromY,
    count: jax.Array,
    tangents: Tangents,
) -> jax.Array:
    """Returns the tangent of the output, computed from the output and the residual."""
    with jax.named_scope("jaxbn.tangent"):
        y, mask, std, scale, bias, residual = kept
        wide = affine.wide_dtype(y, scale, bias)
        expand = affine.expander(settings.feature_axes, y)
        scale, bias = scale.astype(wide), bias.astype(wide)
        dx, dscale, dbias = _widened(tangents, wide)
        keep = None
        if mask is not None:
            # Elements outside the mask that were not finite became the activated bias.
            constant = expand(affine.activation(output)(bias).astype(y.dtype))
            keep = jnp.isfinite(y) & (y != constant)
            if residual is not None:
                keep = keep & jnp.isfinite(residual)
                residual = jnp.where(mask | keep, residual, 0)
            keep = mask | keep
            y = jnp.where(keep, y, constant)
            dx = jnp.where(keep, dx, 0)
        y = y.astype(wide)

        def activated(values):
            """Returns the values times the derivative of the activation."""
            if output.activation is None:
                return values
            slope = affine.NEGATIVE_SLOPES[output.activation]
            return jnp.where(y < 0, slope * values, values)

        z = y  # The input of the activation.
        if output.activation is not None:
            z = jnp.where(y < 0, y / affine.NEGATIVE_SLOPES[output.activation], y)
        # Where the scale is 0, x_hat cannot be computed from y. The gradients of x and
        # of the scale are taken as 0.
        inverse = jnp.where(scale == 0, 0, 1 / jnp.where(scale == 0, 1, scale))
        # `activated(z)` is y, so the transpose sums y * dy and need not compute x_hat.
        scaled = y
        if residual is not None:
            residual = residual.astype(wide)
            z, scaled = z - residual, scaled - activated(residual)
        x_hat = (z - expand(bias)) * expand(inverse)
        mean_dx, mean_product = _mean_all(settings, mask, count, dx, x_hat)
        slope = scale / std
        p = inverse * (dscale - slope * mean_product)
        q = dbias - slope * mean_dx - bias * p
        dz = expand(slope) * dx + expand(q)
        by_scale = scaled * expand(p)
        if keep is not None:
            dz = jnp.where(keep, dz, expand(dbias))
            by_scale = jnp.where(keep, by_scale, 0)
        if tangents.residual is not None:
            dz = dz + tangents.residual.astype(wide)
        return (activated(dz) + by_scale).astype(output.dtype)


def _widened(tangents: Tangents, wide: jnp.dtype) -> tuple[jax.Array, ...]:
    """Returns the tangents of `x`, scale and bias in a wide dtype."""
    return tuple(
        part.astype(wide) for part in (tangents.x, tangents.scale, tangents.bias)
    )


def _mean_all(settings, mask, count, dx, factor):
    """Returns the means of dx and Re(conj(factor) * dx) over mask and devices."""
    if mask is not None:  # This precedes the product; see `_affine_tangent`.
        dx, factor = jnp.where(mask, dx, 0), jnp.where(mask, factor, 0)
    product = (jnp.conj(factor) * dx).real if jnp.iscomplexobj(dx) else factor * dx
    axes = reduction.reduction_axes(dx.ndim, settings.feature_axes)
    return means(settings, count, jnp.sum(dx, axes), jnp.sum(product, axes))


def means(
    settings: reduction.Settings,
    count: jax.Array,
    sum_dx: jax.Array,
    sum_product: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the means over all devices, from the sums of this device, `[C]`.

    One collective carries both.
    """
    if settings.devices is not None:
        sums = jnp.stack([sum_dx, sum_product])
        sum_dx, total = collectives.group_sum(sums, settings.devices)
        sum_product = total if jnp.iscomplexobj(sum_product) else total.real
    # XLA:CPU would turn a division by a constant into a product that it computes for
    # every element. The barrier hides that the count is a constant.
    (divisor,) = barriers.unshared(jnp.maximum(count, 1))
    return sum_dx / divisor, sum_product / divisor
