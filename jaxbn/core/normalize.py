"""The op: standardise with the moments of the batch, then scale and shift.

    mean, var, count over the valid elements of all devices of the group
    std = sqrt(var + epsilon),  x_hat = (x - mean) / std,  slope = scale / std
    y = activation(x_hat * scale + bias + residual)

One derivative rule serves forward mode, reverse mode and every higher order. Its
tangent, with `mean_all` over mask and devices,

    P = dscale - slope * mean_all(x_hat * dx)
    Q = dbias - slope * mean_all(dx)
    dy = slope * dx + x_hat * P + Q

has the paper's simplified backward pass (Section 3) as its transpose. It is wrapped in
`jax.checkpoint`, so that the backward pass keeps `x` in its own dtype, `mean` and
`std`, and nothing else of the size of `x`: what the activation's derivative needs is
made of them again. Mask and residual, if given, are kept as they are.

In place (Rota Bulo et al., 2018) it keeps `y` instead of `x`, which the next layer
keeps anyway, and solves `y` for `x_hat`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.ad_checkpoint
import jax.numpy as jnp

from jaxbn.core import moments as moments_lib
from jaxbn.core import reduction, sync

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}
_MOMENTS = "jaxbn.moments"

_policy = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable,
    jax.checkpoint_policies.save_only_these_names(_MOMENTS),
)

# Activations that `in_place` can undo, and their slopes below 0.
NEGATIVE_SLOPES: dict[str | None, float] = {None: 1.0, "leaky_relu": 0.01}


def dots_and_moments_saveable(*args, **params):
    """Policy for `jax.checkpoint`: keeps products and moments, recomputes the rest.

    What matrix products and convolutions make is kept, and the moments of every layer,
    which may have taken a collective; normalisation and activation, of any kind, are
    computed again in the backward pass.

    Example:
      >>> block = jax.checkpoint(jnp.tanh, policy=dots_and_moments_saveable)
    """
    return _policy(*args, **params)


class Spec(NamedTuple):
    """What is static about one normalisation."""

    feature_axes: tuple[int, ...]
    epsilon: float
    dtype: jnp.dtype  # of the result
    axis_name: sync.AxisName | None = None
    axis_index_groups: sync.AxisIndexGroups | None = None
    variance: moments_lib.Variance = "checked"
    reduction_dtype: jnp.dtype | None = None  # None: float32 or wider
    activation: str | None = None  # One of ACTIVATIONS.
    in_place: bool = False  # Keep y instead of x; activation of NEGATIVE_SLOPES.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def normalize(
    spec: Spec,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mask: jax.Array | None,
    residual: jax.Array | None,
) -> tuple[jax.Array, moments_lib.Moments]:
    """Normalises `x` by the moments of its batch.

    Elements outside the mask are normalised too, as in Flax; where that gives nothing
    finite they become the bias. The moments returned carry no derivative: the running
    statistics are made of them.

    Args:
      spec: static options.
      x: `[N, ..., C]`.
      scale: `[C]`.
      bias: `[C]`.
      mask: boolean, broadcastable to `x`, or None.
      residual: added before the activation, of the shape of `x`, or None.

    Returns:
      `y` of the shape of `x` and dtype `spec.dtype`, and the `Moments` of the batch,
      `[C]`, or of each group of devices, `[groups, C]`, the same on all.
    """
    (_, mean, var), groups = batch_moments(spec, x, mask)
    std = _std(spec, var)
    return _apply(spec, x, mask, mean, std, scale, bias, residual), groups


@normalize.defjvp
def _normalize_jvp(spec, primals, tangents):
    x, scale, bias, mask, residual = primals
    dx, dscale, dbias, _, dresidual = tangents
    (count, mean, var), groups = batch_moments(spec, x, mask)
    std = _std(spec, var)
    y = _apply(spec, x, mask, mean, std, scale, bias, residual)
    if spec.in_place:
        tangent, kept = _tangent_in_place, (y, mask, std, scale, bias)
    else:
        tangent, kept = _tangent, (x, mask, mean, std, scale, bias, residual)
    tangents = dx, dscale, dbias, dresidual
    dy = _recomputed(tangent, spec)(kept, count, tangents)
    return (y, groups), (dy, jax.tree.map(jnp.zeros_like, groups))


def batch_moments(spec: Spec, x: jax.Array, mask: jax.Array | None) -> sync.Synced:
    """Moments of the batch over all devices of the group."""
    with jax.named_scope(_MOMENTS):
        synced = sync.sync_moments(
            x,
            spec.feature_axes,
            mask,
            spec.reduction_dtype,
            spec.variance,
            spec.axis_name,
            spec.axis_index_groups,
        )
        return jax.ad_checkpoint.checkpoint_name(synced, _MOMENTS)


def normalize_with(
    spec: Spec,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    residual: jax.Array | None,
) -> jax.Array:
    """Normalises `x` by given statistics, such as those of the population.

    A subtraction and a fused multiply-add per element. The latter alone would round `y`
    by what `mean` rounds, times `scale / std`: 0.03 for a constant channel of 1000.

    Args:
      spec: static options; those of the reduction are not used.
      x: `[N, ..., C]`.
      scale: `[C]`.
      bias: `[C]`.
      mean: `[C]`.
      var: `[C]`.
      residual: added before the activation, of the shape of `x`, or None.

    Returns:
      `y` of the shape of `x` and dtype `spec.dtype`.
    """
    apply = _recomputed(_apply, spec)
    return apply(x, None, mean, _std(spec, var), scale, bias, residual)


@functools.lru_cache
def _recomputed(function: Callable[..., jax.Array], spec: Spec):
    """Keeps the arguments for the backward pass and nothing that is made of them.

    The same object for the same spec, so that JAX traces and transposes it only once
    for all layers of one shape.
    """
    policy = jax.checkpoint_policies.nothing_saveable
    return jax.checkpoint(functools.partial(function, spec), policy=policy)


def _std(spec: Spec, var: jax.Array) -> jax.Array:
    """`sqrt(var + epsilon)`; infinite where that is 0, so that `x_hat` is 0.

    What is made of it is written as a quotient: XLA:CPU computes one per channel, but
    anything cheaper for every element again.
    """
    var = var.astype(reduction.reduction_dtype(var.dtype)) + spec.epsilon
    return jnp.sqrt(jnp.where(var <= 0, jnp.inf, var))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _apply(spec, x, mask, mean, std, scale, bias, residual):
    with jax.named_scope("jaxbn.normalize"):
        y = _affine(spec, x, mask, mean, std, scale, bias, residual)
        return _activation(spec)(y).astype(spec.dtype)


def _affine(spec, x, mask, mean, std, scale, bias, residual):
    """What the activation is given, in float32 or wider."""
    wide, expand = _wide_dtype(x, scale, bias), _expander(spec, x)
    centered, _ = _center(x.astype(wide), mask, expand(mean), expand(std))
    y = centered * expand(scale.astype(wide) / std) + expand(bias.astype(wide))
    return y if residual is None else y + residual.astype(wide)


def _activation(spec):
    return (lambda y: y) if spec.activation is None else ACTIVATIONS[spec.activation]


def _tangent(spec, kept, count, tangents):
    """The tangent of the module docstring, linear in `tangents`."""
    with jax.named_scope("jaxbn.tangent"):
        x, mask, mean, std, scale, _, residual = kept
        *tangents, dresidual = tangents
        dy = _affine_tangent(spec, x, mask, mean, std, count, scale, *tangents)
        if residual is not None:
            dy = dy + dresidual.astype(dy.dtype)
        if spec.activation is not None:
            _, dy = jax.jvp(_activation(spec), (_affine(spec, *kept),), (dy,))
        return dy.astype(spec.dtype)


def _tangent_in_place(spec, kept, count, tangents):
    """The same, made of the output."""
    with jax.named_scope("jaxbn.tangent"):
        y, mask, std, scale, bias = kept
        *tangents, _ = tangents
        wide, expand = _wide_dtype(y, scale, bias), _expander(spec, y)
        scale, bias = scale.astype(wide), bias.astype(wide)
        dx, dscale, dbias = (tangent.astype(wide) for tangent in tangents)
        keep = None
        if mask is not None:  # As `_center`, whose mean came out as the bias.
            constant = expand(_activation(spec)(bias).astype(y.dtype))
            keep = mask | (jnp.isfinite(y) & (y != constant))
            y = jnp.where(keep, y, constant)
        y = y.astype(wide)
        before, gain = y, 1  # What the activation was given; its derivative there.
        if spec.activation is not None:
            slope = NEGATIVE_SLOPES[spec.activation]
            before = jnp.where(y < 0, y / slope, y)
            gain = jnp.where(y < 0, slope, 1).astype(wide)
        # Where scale is 0 no gradient reaches x, and that of scale is unknown: 0.
        inverse = jnp.where(scale == 0, 0, 1 / jnp.where(scale == 0, 1, scale))
        x_hat = (before - expand(bias)) * expand(inverse)
        mean_dx, mean_product = _mean_all(spec, mask, count, dx, x_hat)
        slope = scale / std
        p = inverse * (dscale - slope * mean_product)
        q = dbias - slope * mean_dx - bias * p
        # gain * before = y, so that the transpose sums y * dy, not x_hat * dy.
        dy = gain * (expand(slope) * dx + expand(q)) + y * expand(p)
        dy = dy if keep is None else jnp.where(keep, dy, gain * expand(dbias))
        return dy.astype(spec.dtype)


def _affine_tangent(spec, x, mask, mean, std, count, scale, dx, dscale, dbias):
    wide, expand = _wide_dtype(x, scale, dbias), _expander(spec, x)
    scale, dx, dscale, dbias = (t.astype(wide) for t in (scale, dx, dscale, dbias))
    centered, keep = _center(x.astype(wide), mask, expand(mean), expand(std))
    mean_dx, mean_product = _mean_all(spec, mask, count, dx, centered)
    slope = scale / std
    p = (dscale - slope * (mean_product / std)) / std
    if keep is None:
        # The transpose sums x * dy, not centered * dy: XLA:CPU would store the
        # difference. What that rounds away is of the order of what the float32
        # mean, and x itself, have rounded in x_hat.
        (x,) = moments_lib.apart(x)
        dy = expand(slope) * dx + x.astype(wide) * expand(p)
        dy = dy - expand(slope * mean_dx + mean * p)
    else:
        dy = expand(slope) * dx + centered * expand(p) - expand(slope * mean_dx)
        dy = jnp.where(keep, dy, 0)
    # dbias is added last and once: its cotangent has the sharding of one use.
    return dy + expand(dbias)


def _mean_all(spec, mask, count, dx, centered):
    """Means of dx and Re(conj(centered) * dx) over mask and devices: one collective."""
    product = (jnp.conj(centered) * dx).real if jnp.iscomplexobj(dx) else centered * dx
    if mask is not None:
        dx, product = jnp.where(mask, dx, 0), jnp.where(mask, product, 0)
    axes = reduction.reduction_axes(dx.ndim, spec.feature_axes)
    sum_dx, sum_product = jnp.sum(dx, axes), jnp.sum(product, axes)
    if spec.axis_name is not None:
        sums = jnp.stack([sum_dx, sum_product])
        sum_dx, total = sync.group_sum(sums, spec.axis_name, spec.axis_index_groups)
        sum_product = total if jnp.iscomplexobj(sum_product) else total.real
    divisor = jnp.maximum(count, 1)
    return sum_dx / divisor, sum_product / divisor


def _center(x, mask, mean, std):
    """`x - mean`, and where it may be used (None: everywhere).

    Content outside the mask that does not standardise to anything finite counts as the
    mean, or 0 * NaN would carry it into the sums of the backward pass.
    """
    centered = x - mean
    if mask is None:
        return centered, None
    keep = mask | jnp.isfinite(centered / std)
    return jnp.where(keep, centered, 0), keep


def _wide_dtype(*arrays: jax.Array) -> jnp.dtype:
    return reduction.reduction_dtype(jnp.result_type(*arrays))


def _expander(spec, x):
    """Gives `[C]` arrays the rank of `x`."""
    axes = reduction.reduction_axes(x.ndim, spec.feature_axes)
    return lambda array: jnp.expand_dims(array, axes)
