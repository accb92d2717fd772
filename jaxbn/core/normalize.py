"""The op: moments of the batch, then what is made of them, and one derivative rule.

The rule (`tangent`) is wrapped in `jax.checkpoint`, so that the backward pass keeps `x`
in its own dtype and `[C]` arrays, and nothing else of the size of `x`: what the
activation's derivative needs is made of them again. Mask and residual, if given, are
kept as they are; for ReLU and leaky ReLU the output takes the place of the residual,
which the next layer keeps anyway. In place, it keeps the output instead of `x`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.ad_checkpoint
import jax.numpy as jnp

from jaxbn.core import affine, barriers, moments, reduction, sync, tangent

_MOMENTS = "jaxbn.moments"

_policy = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable,
    jax.checkpoint_policies.save_only_these_names(_MOMENTS),
)


def dots_and_moments_saveable(*args, **params):
    """Policy for `jax.checkpoint`: keeps products and moments, recomputes the rest.

    What matrix products and convolutions make is kept, and the moments of every layer,
    which may have taken a collective; normalisation and activation, of any kind, are
    computed again in the backward pass.

    Example:
      >>> block = jax.checkpoint(jnp.tanh, policy=dots_and_moments_saveable)
    """
    return _policy(*args, **params)


class _Forward(NamedTuple):
    """What the forward pass makes on its way to the output."""

    mine: moments.Moments  # The moments of this device's group.
    groups: moments.Moments  # Those of all groups.
    center: affine.Center
    scale: jax.Array  # Scale and bias after `output.correct`.
    bias: jax.Array
    y: jax.Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def normalize(
    how: reduction.Reduction,
    output: affine.Output,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mask: jax.Array | None,
    residual: jax.Array | None,
    context: Any = None,
) -> tuple[jax.Array, moments.Moments]:
    """Normalises `x` by the moments of its batch.

    Elements outside the mask are normalised too, as in Flax; where that gives nothing
    finite they become the bias. The moments returned carry no derivative: the running
    statistics are made of them.

    Args:
      how: how the moments are made.
      output: what is made of them.
      x: `[N, ..., C]`.
      scale: `[C]`.
      bias: `[C]`.
      mask: boolean, broadcastable to `x`, or None.
      residual: added before the activation, of the shape of `x`, or None.
      context: arrays for `output.correct`; no derivative is taken by them.

    Returns:
      `y` of the shape of `x` and dtype `output.dtype`, and the `Moments` of the batch,
      `[C]`, or of each group of devices, `[groups, C]`, the same on all.
    """
    made = _forward(how, output, x, scale, bias, mask, residual, context)
    return made.y, made.groups


@normalize.defjvp
def _normalize_jvp(how, output, primals, tangents):
    x, scale, bias, mask, residual, context = primals
    dx, dscale, dbias, _, dresidual, _ = tangents
    made = _forward(how, output, x, scale, bias, mask, residual, context)
    if output.correct is not None:
        correct = functools.partial(_corrected, output, made.mine, context)
        _, (dscale, dbias) = jax.jvp(correct, (scale, bias), (dscale, dbias))
    _, _, center, scale, bias, y = made
    if output.in_place:
        if not _is_read_again(output, residual):
            y = barriers.rounded(y)  # The backward pass reads it.
        rule = tangent.from_y
        kept = tangent.FromY(y, mask, center.std, scale, bias, residual)
    else:
        rule = tangent.from_x
        shown = None
        if residual is not None and not tangent.needs_residual(output):
            shown = None if output.activation is None else y
            residual = None
        kept = tangent.FromX(x, mask, center, scale, bias, residual, shown)
    rule = _recomputed(rule, how, output)
    dy = rule(kept, made.mine.count, tangent.Tangents(dx, dscale, dbias, dresidual))
    return (y, made.groups), (dy, jax.tree.map(jnp.zeros_like, made.groups))


def _forward(how, output, x, scale, bias, mask, residual, context) -> _Forward:
    mine, groups = _batch_moments(how, x, mask)
    center = affine.center_of(mine.mean, mine.var, mine.tail, output.epsilon)
    if output.correct is not None:
        scale, bias = _corrected(output, mine, context, scale, bias)
    y = affine.apply(output, how.feature_axes, x, mask, center, scale, bias, residual)
    y = barriers.rounded(y) if _is_read_again(output, residual) else y
    return _Forward(mine, groups, center, scale, bias, y)


def _corrected(output, mine, context, scale, bias):
    """Scale and bias such that `gain * x_hat + shift` takes the place of `x_hat`."""
    gain, shift = jax.lax.stop_gradient(output.correct(mine, context))
    return scale * gain, bias + scale * shift


def _batch_moments(how, x, mask) -> sync.Synced:
    """Moments of the batch over all devices of the group."""
    with jax.named_scope(_MOMENTS):
        synced = sync.sync_moments(how, x, mask)
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
    """Normalises `x` by given statistics, such as those of the population.

    A subtraction and a fused multiply-add per element. The latter alone would round `y`
    by what `mean` rounds, times `scale / std`: 0.03 for a constant channel of 1000.

    Args:
      output: what to put out.
      feature_axes: canonical channel axes.
      x: `[N, ..., C]`.
      scale: `[C]`.
      bias: `[C]`.
      mean: `[C]`.
      var: `[C]`.
      residual: added before the activation, of the shape of `x`, or None.
      mask: outside of it, what gives nothing finite becomes the bias.

    Returns:
      `y` of the shape of `x` and dtype `output.dtype`.
    """
    center = affine.center_of(mean, var, 0.0, output.epsilon)
    apply = _recomputed(affine.apply, output, feature_axes)
    y = apply(x, mask, center, scale, bias, residual)
    return barriers.rounded(y) if _is_read_again(output, residual) else y


def _is_read_again(output: affine.Output, residual: jax.Array | None) -> bool:
    """Whether the output ends a block, so that it is the next one's residual too."""
    return output.activation is not None and residual is not None


@functools.lru_cache
def _recomputed(function: Callable[..., jax.Array], *static):
    """Keeps the arguments for the backward pass and nothing that is made of them.

    The same object for the same static arguments, so that JAX traces and transposes it
    only once for all layers of one shape. Without the barriers that keep XLA from
    merging what is computed again with what was computed before: they would keep the
    sums of the backward pass out of the kernel that makes their operand.
    """
    policy = jax.checkpoint_policies.nothing_saveable
    bound = functools.partial(function, *static)
    return jax.checkpoint(bound, policy=policy, prevent_cse=False)
