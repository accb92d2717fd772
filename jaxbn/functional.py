"""Batch Normalization as two pure functions: one for training, one for inference.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias

Training takes `mean` and `var` from the batch, and returns updated running statistics.
Inference takes them from the running statistics. `x` is `[N, ..., C]`, the other arrays
are `[C]`.
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
    """Normalises a batch by its own statistics and updates the running statistics.

    The result is differentiable in `x`, `scale` and `bias`, to any order, in forward
    and reverse mode. The backward pass keeps `x` in its own dtype and a few `[C]`
    arrays. No gradient flows through the running statistics.

    Args:
      x: `[N, ..., C]`; integers are promoted to float32.
      scale: `[C]`, or None for 1.
      bias: `[C]`, or None for 0.
      batch_stats: running statistics, `[C]` each, float32. Half precision is widened.
      axis: channel axis or axes of `x`; all others are reduced. With several, `C`
        stands for their sizes, in ascending order of the axes.
      momentum: weight of the OLD running statistics.
      epsilon: a number >= 0 that is added to the variance.
      mask: True (or not 0) where an element counts for the statistics; broadcast to `x`
        by NumPy's rule. The other elements are normalised as well. Their content, NaN
        included, reaches no other value. It reaches no gradient as long as the loss
        leaves them out.
      axis_name: axis or tuple of axes, bound by pmap, shard_map or vmap, over which the
        batch is split. The statistics are those of all shards together. Leave it out
        under plain jit, with or without shardings: statistics are global there by
        construction.
      axis_index_groups: groups of indices along `axis_name` that share statistics, in
        every parallel style. The groups have the same size, and every index is in one.
      group_size: with `axis_name`, the number of neighbouring devices that share
        statistics. Without, the number of examples that share them: the batch is
        normalised in parts (Ghost Batch Normalization), without a collective where the
        parts follow the shards. "local": each device is a group of its own. Under jit,
        "local" needs a mesh on which `x` lies or which `jax.set_mesh` sets, with
        Explicit axes or a single axis. The running statistics follow the whole batch,
        not its groups (law of total variance).
      unbiased: True moves the running variance towards `var * m / (m - 1)` (the paper,
        PyTorch), where `m` counts the global batch. False moves it towards `var`
        (Flax).
      residual: an array of the shape of `x` that is added before the activation.
      activation: "relu", "leaky_relu" (0.01), "silu", "gelu" (tanh) or None. The
        backward pass recomputes what its derivative needs, and keeps nothing more.
      in_place: keep `y` for the backward pass instead of `x`, and compute `x_hat` from
        it (Rota Bulo et al., 2018). This saves memory where the next layer keeps `y`
        anyway. It works for activation None and "leaky_relu". A residual is kept too.
        The gradients use an `x_hat` with the rounding or the overflow of `y`, magnified
        by `(bias + residual) / scale`. A scale of 0 gets no gradient, so do not start
        with it. Outside the mask, a `y` that equals the activated bias counts as a
        constant.
      dtype: the dtype of `y`. Default: the dtype of `x`.
      variance: the form in which the variance is computed; see `jaxbn.core.forms`.
        "auto" is the stable form that is cheapest where the program runs. "checked"
        makes one pass, and a second one only if some channel needs it. "two_pass"
        always makes both. "sliced" does so too, in a way that suits a TPU. "shifted"
        makes one pass about the mean of a part of `x`. "unconditional" is the cheapest
        stable form other than "checked". "fast" is `E[x^2] - E[x]^2`, whatever
        precision that loses.
      use_fast_variance: True means `variance="fast"`.
      force_float32_reductions: False squares `x` of half precision in its own dtype,
        and rounds its moments to that dtype.
      estimator: the rule by which the running statistics follow the batches: "ema" (the
        default), "debiased", "cumulative", "window", or one of `jaxbn.estimators`. Its
        state takes the place of a `BatchStats`. An estimator that is not given by name
        has its own settings and ignores `momentum` and `unbiased`.
      sync: a policy of `jaxbn.sync_policies`. It decides how devices share statistics
        or, without an axis name, how parts of `group_size` examples do. Default:
        devices along `axis_name` share them exactly, parts do not share them. A policy
        that remembers earlier steps needs `sync_policies.WithSync(batch_stats, state)`
        in the place of `batch_stats`.

    Returns:
      `y` of the shape of `x`, and the new `BatchStats`. It has unchanged shapes, and
      unchanged dtypes except where they are half precision. A channel keeps its
      statistics where the batch has fewer than two valid values for it or where its
      moments are not finite. Another `estimator` returns its own state, and a `sync`
      that remembers earlier steps returns a `WithSync`.

    Raises:
      ValueError: if `axis` is out of range or repeated; if `scale`, `bias` or
        `batch_stats` are not `[C]`; if `mask` does not broadcast, or has fewer axes
        than `x` and fits its first as well as its last ones; if `momentum` (where
        known) is outside [0, 1] or `epsilon` is negative; if `axis_name` is not bound
        or `x` is not split over it; if `axis_index_groups` comes without it or with
        `group_size`; if groups overlap, differ in size or leave a device out; if
        `group_size` does not divide the devices or the batch; if `residual` does not
        have the shape of `x`; if `activation` is unknown or cannot be undone
        `in_place`; if `variance` is unknown or contradicts `use_fast_variance`.
      TypeError: if `batch_stats` is not a `BatchStats`; if `x` is complex and its
        running mean is not; if `x` is real and `scale`, `bias` or `residual` is not; if
        `x` is complex and there is an `activation`; if `epsilon` is traced; if `dtype`
        is an integer dtype; if `in_place` is not a bool; if `group_size` is neither an
        int nor "local"; if a loop such as `lax.scan` carries `batch_stats` of half
        precision.

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

    The map is computed in float32 or wider. Statistics are never rounded to half
    precision.

    Args:
      x: `[N, ..., C]`; integers are promoted to float32.
      scale: `[C]`, or None for 1.
      bias: `[C]`, or None for 0.
      batch_stats: running statistics, `[C]` each, as `batch_norm_train` returns them
        beside `y`, with any of `jaxbn.estimators` and `jaxbn.sync_policies`. If your
        own estimator has a state without `mean` and `var`, give
        `estimator.estimate(state)`.
      axis: channel axis or axes of `x`.
      epsilon: a number >= 0 that is added to the variance.
      residual: as in `batch_norm_train`.
      activation: as in `batch_norm_train`.
      dtype: the dtype of `y`. Default: the dtype of `x`.

    Returns:
      `y` of the shape of `x`.

    Raises:
      ValueError, TypeError: as in `batch_norm_train`.

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
    # On a mesh of Explicit axes the statistics may be split differently from `x`.
    mean, var = (
        reduction.split_as_channels(part, x, feature_axes) for part in batch_stats
    )
    return normalize.standardize(
        output, feature_axes, x, scale, bias, mean, var, residual
    )
