"""The op: moments of the batch, the output, and one derivative rule.

The rule (`derivative`) is wrapped in `jax.checkpoint`. The backward pass therefore
keeps `x` in its own dtype and `[C]` arrays, and nothing else of the size of `x`. It
recomputes what the derivative of the activation needs. A mask and a residual are kept
as they are. For ReLU and leaky ReLU the op keeps the output instead of a residual,
because the next layer keeps the output anyway. With `in_place` it keeps the output
instead of `x`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.ad_checkpoint
import jax.numpy as jnp

from jaxbn._core import (
    affine,
    barriers,
    collectives,
    derivative,
    moments,
    product,
    reduction,
)

_MOMENTS = "jaxbn.moments"

_policy = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable,
    jax.checkpoint_policies.save_only_these_names(_MOMENTS),
)


def remat_policy(*args, **params):
    """Makes `jax.checkpoint` keep products and moments, and recompute the rest.

    This function is a policy. It keeps the results of matrix products and convolutions.
    It also keeps the moments of every layer, which may have taken a collective. The
    backward pass recomputes normalisation and activation.

    Example:
      >>> block = jax.checkpoint(jnp.tanh, policy=remat_policy)
    """
    return _policy(*args, **params)


class _Forward(NamedTuple):
    """The results of the forward pass, from the moments to the output."""

    mine: moments.Moments  # The moments of this device's group.
    groups: moments.Moments  # The moments of all groups.
    center: affine.Center
    scale: jax.Array  # Scale and bias after `output.correct`.
    bias: jax.Array
    y: jax.Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def normalize(
    settings: reduction.Settings,
    output: affine.Output,
    x: jax.Array | product.Product,
    scale: jax.Array,
    bias: jax.Array,
    mask: jax.Array | None,
    residual: jax.Array | None,
    context: Any = None,
) -> tuple[jax.Array, moments.Moments]:
    """Normalises `x` by the moments of its batch.

    Elements outside the mask are normalised too, as in Flax. They become the bias if
    their result is not finite. The returned moments carry no derivative: they are for
    the running statistics.

    Args:
      settings: the settings of the moments.
      output: the settings of the output.
      x: `[N, ..., C]`, or its factors, which the backward pass keeps instead of `x`.
        The mask is then the same for all channels.
      scale: `[C]`.
      bias: `[C]`.
      mask: boolean, broadcastable to `x`, or None.
      residual: an array of the shape of `x` that is added before the activation, or
        None.
      context: arrays for `output.correct`; no derivative is taken with respect to them.

    Returns:
      `y` of the shape of `x` and dtype `output.dtype`, and the `Moments` of the batch,
      `[C]`, or of each group of devices, `[groups, C]`. The moments are the same on all
      devices.
    """
    forward = _forward(settings, output, x, scale, bias, mask, residual, context)
    return forward.y, forward.groups


@normalize.defjvp
def _normalize_jvp(settings, output, primals, tangents):
    x, scale, bias, mask, residual, context = primals
    dx, dscale, dbias, _, dresidual, _ = tangents
    forward = _forward(settings, output, x, scale, bias, mask, residual, context)
    if output.correct is not None:
        correct = functools.partial(_corrected, output, forward.mine, context)
        _, (dscale, dbias) = jax.jvp(correct, (scale, bias), (dscale, dbias))
    center, scale, bias, y = forward.center, forward.scale, forward.bias, forward.y
    if output.in_place:
        if not _is_read_again(output, residual):
            y = barriers.rounded(y)  # The backward pass reads it.
        rule = derivative.from_y
        kept = derivative.FromY(y, mask, center.std, scale, bias, residual)
    else:
        shown = None
        if not derivative.needs_residual(output):
            known = residual is None and not isinstance(x, product.Product)
            shown = None if known or output.activation is None else y
            residual = None
        if isinstance(x, product.Product):
            rule = product.from_product
            kept = product.FromProduct(x, mask, center, scale, bias, residual, shown)
        else:
            rule = derivative.from_x
            kept = derivative.FromX(x, mask, center, scale, bias, residual, shown)
    rule = _recomputed(rule, settings, output)
    given = derivative.Tangents(dx, dscale, dbias, dresidual)
    dy = rule(kept, forward.mine.count, given)
    return (y, forward.groups), (dy, jax.tree.map(jnp.zeros_like, forward.groups))


def _forward(settings, output, x, scale, bias, mask, residual, context) -> _Forward:
    x = x.value() if isinstance(x, product.Product) else x
    mine, groups = _batch_moments(settings, x, mask)
    center = affine.center_of(mine.mean, mine.var, mine.tail, output.epsilon)
    if output.correct is not None:
        scale, bias = _corrected(output, mine, context, scale, bias)
    y = affine.apply(
        output, settings.feature_axes, x, mask, center, scale, bias, residual
    )
    y = barriers.rounded(y) if _is_read_again(output, residual) else y
    return _Forward(mine, groups, center, scale, bias, y)


def _corrected(output, mine, context, scale, bias):
    """Returns the scale and bias that include `gain` and `shift`.

    Applied to `x_hat`, they give what scale and bias give for `gain * x_hat + shift`.
    """
    gain, shift = jax.lax.stop_gradient(output.correct(mine, context))
    return scale * gain, bias + scale * shift


def _batch_moments(settings, x, mask) -> collectives.Synced:
    """Computes the moments of the batch over all devices of the group."""
    with jax.named_scope(_MOMENTS):
        synced = collectives.sync_moments(settings, x, mask)
        return jax.ad_checkpoint.checkpoint_name(synced, _MOMENTS)


def standardize(
    output: affine.Output,
    feature_axes: tuple[int, ...],
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    residual: jax.Array | None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Normalises `x` by given statistics, such as the running statistics.

    This takes a subtraction and a fused multiply-add per element. A multiply-add alone
    would multiply a rounding of `mean` by `scale / std`, which changes `y` by 0.03 for
    a constant channel of 1000.

    Args:
      output: the settings of the output.
      feature_axes: canonical channel axes.
      x: `[N, ..., C]`.
      scale: `[C]`.
      bias: `[C]`.
      mean: `[C]`.
      var: `[C]`.
      residual: an array of the shape of `x` that is added before the activation, or
        None.
      mask: elements outside of it become the bias if their result is not finite.

    Returns:
      `y` of the shape of `x` and dtype `output.dtype`.
    """
    center = affine.center_of(mean, var, 0.0, output.epsilon)
    apply = _recomputed(affine.apply, output, feature_axes)
    y = apply(x, mask, center, scale, bias, residual)
    return barriers.rounded(y) if _is_read_again(output, residual) else y


def _is_read_again(output: affine.Output, residual: jax.Array | None) -> bool:
    """Returns whether the output ends a block, and is also the next residual."""
    return output.activation is not None and residual is not None


@functools.lru_cache
def _recomputed(function: Callable[..., jax.Array], *static):
    """Returns the function with a backward pass that keeps only its arguments.

    Equal static arguments give one object, so that JAX traces and transposes it only
    once for all layers of one shape. `prevent_cse=False` leaves out the barriers
    between the recomputation and the first computation. With them, XLA could not fuse
    the sums of the backward pass with the computation of their operand.
    """
    policy = jax.checkpoint_policies.nothing_saveable
    bound = functools.partial(function, *static)
    return jax.checkpoint(bound, policy=policy, prevent_cse=False)
