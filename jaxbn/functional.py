"""Batch Normalization as two pure functions: one for training, one for inference.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias

Training takes `mean` and `var` from the batch and returns the moved running statistics;
inference takes them from the running statistics. `x` is `[N, ..., C]`, the rest `[C]`.
"""

from collections.abc import Sequence
from typing import Any

import jax

from jaxbn import checks, estimation, grouping, sync_policies
from jaxbn.call import Call
from jaxbn.core import normalize, reduction, running


def batch_norm_train(
    x: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None,
    bias: jax.typing.ArrayLike | None,
    batch_stats: running.BatchStats | sync_policies.WithSync,
    *,
    axis: int | Sequence[int] = -1,
    momentum: jax.typing.ArrayLike = 0.99,
    epsilon: float = 1e-5,
    mask: jax.typing.ArrayLike | None = None,
    axis_name: reduction.AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    group_size: grouping.GroupSize | None = None,
    unbiased: bool = True,
    residual: jax.typing.ArrayLike | None = None,
    activation: str | None = None,
    in_place: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
    variance: reduction.Variance = "auto",
    use_fast_variance: bool = False,
    force_float32_reductions: bool = True,
    estimator: estimation.EstimatorOrName | None = None,
    sync: sync_policies.Policy | None = None,
) -> tuple[jax.Array, running.BatchStats]:
    """Normalises a batch by its own statistics and moves the running ones.

    Differentiable in `x`, `scale` and `bias` to any order and in both modes; keeps `x`
    in its own dtype and a few `[C]` arrays for the backward pass. No gradient flows
    through the running statistics.

    Args:
      x: `[N, ..., C]`; integers are promoted to float32.
      scale: `[C]`, or None for 1.
      bias: `[C]`, or None for 0.
      batch_stats: running statistics, `[C]` each, float32. Half precision is widened.
      axis: channel axis or axes of `x`; all others are reduced. `C` then stands for
        their sizes in ascending order.
      momentum: weight of the OLD running statistics.
      epsilon: added to the variance, >= 0.
      mask: True (or not 0) where an element counts for the statistics; broadcast to `x`
        by NumPy's rule. Other elements are normalised as well; whatever they contain, NaN
        too, reaches no other value, and no gradient as long as the loss leaves them out.
      axis_name: axis or tuple of axes, bound by pmap, shard_map or vmap, over which the
        batch is split; statistics are those of all shards together. Under plain jit,
        with or without shardings, they are so by construction.
      axis_index_groups: groups of indices along `axis_name` that share statistics, of
        one size and all indices among them; in every parallel style.
      group_size: with `axis_name`, the same for groups of that many neighbours; without,
        examples per group: the batch is normalised in parts (Ghost Batch
        Normalization), without a collective where parts follow the shards. "local": a
        device each; under jit on a mesh of Explicit axes, or on one of a single axis,
        on which `x` lies or that `jax.set_mesh` gives. The running statistics of groups
        are those of the whole batch (law of total variance).
      unbiased: move the running variance towards `var * m / (m - 1)` (the paper,
        PyTorch), m counting the global batch; False: towards `var` (Flax).
      residual: of the shape of `x`, added before the activation.
      activation: "relu", "leaky_relu" (0.01), "silu", "gelu" (tanh) or None. The
        backward pass recomputes what its derivative needs: nothing more is kept.
      in_place: keep `y` for the backward pass instead of `x` and solve it for `x_hat`
        (Rota Bulo et al., 2018): saves memory where the next layer keeps `y` anyway.
        For activation None and "leaky_relu"; a residual is kept too. Gradients see
        `x_hat` with the rounding of `y`, or its overflow, magnified by
        `(bias + residual) / scale`; a channel
        whose scale is 0 gets no gradient for it, so do not start it there. Outside the
        mask a `y` that equals the activated bias counts as a constant.
      dtype: of `y`; default that of `x`.
      variance: the form in which it is computed. "auto": the one that is cheapest where
        the program runs, among those that are stable: "checked" (one pass, a second one
        only where some channel needs it), "two_pass", "sliced" (the same for a TPU),
        "shifted" (one pass about the mean of a part of `x`); see `jaxbn.core.forms`.
        "unconditional": the cheapest of them but "checked". "fast" is
        `E[x^2] - E[x]^2`, whatever that loses.
      use_fast_variance: the same as `variance="fast"`.
      force_float32_reductions: False squares half-precision `x`, and rounds its
        moments, in its own dtype.
      estimator: how the running statistics follow the batches: "ema" (the default), or "debiased",
        "cumulative", "window" or any of `jaxbn.estimators`, whose state is then in the
        place of a `BatchStats`. Those with settings of their own leave `momentum` and
        `unbiased` aside.
      sync: how devices, or parts of `group_size` examples without an axis name, share
        their statistics: one of `jaxbn.sync_policies`. Default: those along `axis_name`
        exactly, parts not at all. One that remembers earlier steps needs
        `sync_policies.WithSync(batch_stats, state)` in the place of `batch_stats`.

    Returns:
      `y` of the shape of `x`, and the new `BatchStats`, with unchanged shapes, and
      unchanged dtypes but for half precision. A
      channel keeps its statistics where the batch has fewer than two valid values for
      it or where its moments are not finite.

    Raises:
      ValueError: if `axis` is out of range or repeated, if `scale`, `bias` or
        `batch_stats` are not `[C]`, if `mask` does not broadcast, or has fewer
        axes than `x` and fits its first as well as its last ones, if `momentum` (where known) is outside [0, 1] or `epsilon` negative, if
        `axis_name` is not bound or `x` not split over it, if `axis_index_groups` comes
        without it or with `group_size`, if groups overlap, differ in size or leave a
        device out, or `group_size` does not divide the devices or the batch, if
        `residual` has not the shape of `x`, `activation` is unknown or cannot be undone
        `in_place`, or `variance` is unknown or contradicts `use_fast_variance`.
      TypeError: if `batch_stats` is not a `BatchStats`, if `x` is complex and its mean
        is not, or `x` is real and `scale`, `bias` or `residual` is not; if `x` is
        complex and there is an `activation`; if `epsilon` is traced, `dtype` of
        integers, `in_place` not a bool, or `group_size` neither an int nor "local"; if
        a loop such as `lax.scan` carries `batch_stats` of half precision.

    Warns:
      UserWarning: if the shapes leave one value per channel, which has no variance, or
        if `batch_stats` has half precision.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> stats = running.init_batch_stats(2)
      >>> y, stats = batch_norm_train(x, None, None, stats, momentum=0.5)
      >>> y.round(2)
      Array([[-1., -1.],
             [ 1.,  1.]], dtype=float32)
      >>> stats
      BatchStats(mean=Array([ 1., 10.], dtype=float32), var=Array([  1.5, 100.5], dtype=float32))

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Algorithm 1; for convolutions, Section 3.2.
      Rota Bulo, Porzi and Kontschieder, arXiv:1712.02616, for `in_place`.
    """  # noqa: E501
    sync_state: sync_policies.State = {}
    if isinstance(batch_stats, sync_policies.WithSync):
        batch_stats, sync_state = batch_stats
    follow = estimation.as_estimator("estimator", estimator, momentum, unbiased)
    if estimator is not None:
        estimation.check_state(follow, batch_stats)
    if force_float32_reductions:
        batch_stats = estimation.widened(batch_stats)
    x, scale, bias, feature_axes = checks.as_arrays(
        x,
        scale,
        bias,
        follow.estimate(batch_stats),
        axis,
    )
    mask = checks.as_mask(mask, x.shape)
    residual = checks.as_residual(residual, x)
    output = checks.as_output(
        x, epsilon=epsilon, dtype=dtype, activation=activation, in_place=in_place
    )
    variance = checks.as_variance(variance, use_fast_variance)
    devices = grouping.as_devices(axis_name, axis_index_groups, group_size)
    grouping.check_split(x, devices)
    how = reduction.Reduction(
        feature_axes,
        variance=variance,
        dtype=None if force_float32_reductions else x.dtype,
        devices=devices,
    )
    examples = None
    if devices is None and group_size is not None:
        examples = grouping.examples_per_group(x, feature_axes, group_size)
    stats = follow.estimate(batch_stats)
    call = Call(how, output, x, scale, bias, mask, residual, stats, examples)
    if sync is None:
        y, moments = call.normalized()
    else:
        y, moments, sync_state = sync_policies.normalize(sync, call, sync_state)
    batch_stats = estimation.moved(follow, batch_stats, moments)
    made: Any = batch_stats
    if sync_state:
        made = sync_policies.WithSync(batch_stats, sync_state)
    return y, made


def batch_norm_inference(
    x: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None,
    bias: jax.typing.ArrayLike | None,
    batch_stats: Any,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    residual: jax.typing.ArrayLike | None = None,
    activation: str | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Normalises by the running statistics: a fixed affine map of every channel.

    Computed in float32 or wider; statistics are never rounded to half precision.

    Args:
      x: `[N, ..., C]`; integers are promoted to float32.
      scale: `[C]`, or None for 1.
      bias: `[C]`, or None for 0.
      batch_stats: running statistics, `[C]` each: all that `batch_norm_train` returns
        beside `y`, with any of `jaxbn.estimators` and of `jaxbn.sync_policies`. For an
        estimator of your own whose state has no `mean` and `var`, give
        `estimator.estimate(state)`.
      axis: channel axis or axes of `x`.
      epsilon: added to the variance.
      residual: as `batch_norm_train`.
      activation: as `batch_norm_train`.
      dtype: of `y`; default that of `x`.

    Returns:
      `y` of the shape of `x`.

    Raises:
      ValueError, TypeError: as `batch_norm_train`.

    Example:
      >>> import jax.numpy as jnp
      >>> stats = running.BatchStats(jnp.array([2.0]), jnp.array([4.0]))
      >>> batch_norm_inference(jnp.array([[4.0]]), None, None, stats, epsilon=0.0)
      Array([[1.]], dtype=float32)

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Algorithm 2, step 11.
    """
    if isinstance(batch_stats, sync_policies.WithSync):
        batch_stats = batch_stats.batch_stats
    batch_stats = estimation.as_batch_stats(batch_stats)
    x, scale, bias, feature_axes = checks.as_arrays(x, scale, bias, batch_stats, axis)
    residual = checks.as_residual(residual, x)
    output = checks.as_output(x, epsilon=epsilon, dtype=dtype, activation=activation)
    # On a mesh of Explicit axes statistics may be split otherwise than the input.
    mean, var = (
        reduction.split_as_channels(part, x, feature_axes) for part in batch_stats
    )
    return normalize.standardize(
        output, feature_axes, x, scale, bias, mean, var, residual
    )
