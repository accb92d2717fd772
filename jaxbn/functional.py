"""Batch Normalization as pure functions: for training, for inference, and the moments.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias

Training takes `mean` and `var` from the batch, and returns updated running statistics.
Inference takes them from the running statistics. `x` is `[N, ..., C]`, the other arrays
are `[C]`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn import estimators
from jaxbn._core import arguments, groups, moments, normalize, reduction, running
from jaxbn._core import call as call_lib
from jaxbn._core import variance as variance_lib

__all__ = ["batch_moments", "batch_norm_inference", "batch_norm_train"]


def batch_norm_train(
    x: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None,
    bias: jax.typing.ArrayLike | None,
    batch_stats: estimators.BatchStats,
    *,
    axis: int | Sequence[int] = -1,
    momentum: jax.typing.ArrayLike = estimators.MOMENTUM,
    epsilon: float = 1e-5,
    mask: jax.typing.ArrayLike | None = None,
    axis_name: reduction.AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    group_size: groups.GroupSize | None = None,
    unbiased: bool = True,
    residual: jax.typing.ArrayLike | None = None,
    activation: str | None = None,
    in_place: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
    variance: reduction.Variance = "auto",
    estimator: estimators.EstimatorOrName = "ema",
    sync: Any = None,
    variant: Any = None,
    factors: arguments.Factors | None = None,
) -> tuple[jax.Array, estimators.BatchStats]:
    """Normalises a batch by its own statistics and updates the running statistics.

    The result is differentiable in `x`, `scale` and `bias`, to any order, in forward
    and reverse mode. The backward pass keeps `x` in its own dtype and a few `[C]`
    arrays. No gradient flows through the running statistics.

    Args:
      x: `[N, ..., C]`; integers are promoted to float32.
      scale: `[C]`, or None for 1.
      bias: `[C]`, or None for 0.
      batch_stats: running statistics, made by `jaxbn.init_batch_stats` with the same
        `estimator`, `sync` and `variant`. Half precision is widened.
      axis: channel axis or axes of `x`; all others are reduced. With several, `C`
        stands for their sizes, in ascending order of the axes.
      momentum: weight of the OLD running statistics.
      epsilon: a number >= 0 that is added to the variance.
      mask: True (or not 0) where an element counts for the statistics; broadcast to `x`
        by NumPy's rule. The other elements are normalised as well. Their content, even
        NaN, affects no other element. It affects no gradient if the loss leaves them
        out.
      axis_name: axis or tuple of axes, bound by pmap, shard_map or vmap, over which the
        batch is split. The statistics are those of all shards together. Leave it out
        under plain jit, where statistics are always those of the whole batch.
      axis_index_groups: groups of indices along `axis_name` that share statistics, in
        every parallel style. The groups have the same size, and every index is in one.
      group_size: with `axis_name`, the number of neighbouring devices that share
        statistics. Without an axis name, the number of examples that share them (Ghost
        Batch Normalization). There is no collective if no part spans several devices.
        With "local" each device is a group. Under jit, "local" needs a mesh with
        Explicit axes or a single axis, on which `x` lies or which `jax.set_mesh` sets.
        The running statistics are those of the whole batch, not of its groups (law of
        total variance).
      unbiased: True updates the running variance with `var * m / (m - 1)` (the paper,
        PyTorch), where `m` counts the global batch. False updates it with `var` (Flax).
      residual: an array of the shape of `x` that is added before the activation.
      activation: "relu", "leaky_relu" (0.01), "silu", "gelu" (tanh) or None. The
        backward pass recomputes what its derivative needs, and keeps nothing more.
      in_place: keep `y` for the backward pass instead of `x`, and compute `x_hat` from
        it (Rota Bulo et al., 2018). This saves memory where the next layer keeps `y`
        anyway. It works for activation None and "leaky_relu". A residual is kept too.
        The gradients use an `x_hat` that contains the rounding or overflow of `y`,
        times `(bias + residual) / scale`. A scale of 0 gets no gradient, so do not
        start with it. Outside the mask, a `y` that equals the activated bias counts as
        a constant.
      dtype: the dtype of `y`. Default: the dtype of `x`.
      variance: the form in which the variance is computed. "auto" is the stable form
        that is cheapest where the program runs. "unconditional" is the cheapest stable
        form without a conditional. "fast" is `E[x^2] - E[x]^2`, which is imprecise
        where the mean is large.
      estimator: the rule that updates the running statistics: "ema" (the default),
        "debiased", "cumulative", "window", or an estimator of `jaxbn.estimators` with
        other settings.
      sync: a policy of `jaxbn.sync`. It decides how devices share statistics or,
        without an axis name, how parts of `group_size` examples do. Default: devices
        along `axis_name` share them exactly, parts do not share them.
      variant: a relative of Batch Normalization from `jaxbn.variants`, instead of
        `sync`.
      factors: `(inputs, kernel)` of shapes `[N, ..., K]` and `[K, C]` whose product
        `inputs @ kernel` is `x`. The gradient goes to them, and the backward pass keeps
        them instead of `x`. That saves memory where K is less than C, and costs
        `2 K / C` of the work of the kernel's gradient. `x` is kept all the same with a
        mask that differs between channels, with `group_size` examples, and where a
        mesh of Explicit axes splits `x`.

    Returns:
      `y` of the shape of `x`, and the new `BatchStats`. Its shapes are unchanged, and
      its dtypes too, except that half precision becomes float32. A channel keeps its
      statistics if the batch has fewer than two valid values for it, or if its moments
      are not finite.

    Raises:
      ValueError: if `axis` is out of range or repeated; if `scale`, `bias` or
        `batch_stats` are not `[C]`; if `mask` does not broadcast, or has fewer axes
        than `x` and fits its first as well as its last ones; if `momentum` (where
        known) is outside [0, 1] or `epsilon` is negative; if `axis_name` is not bound
        or `x` is not split over it; if `axis_index_groups` comes without it or with
        `group_size`; if groups overlap, differ in size or leave a device out; if
        `group_size` does not divide the devices or the batch; if `residual` does not
        have the shape of `x`; if `factors` do not fit `x`, or come with `in_place`; if
        `activation` is unknown or cannot be undone `in_place`; if `variance` or the
        name of an estimator is unknown; if `momentum` or `unbiased` is given beside an
        estimator that ignores it.
      TypeError: if `batch_stats` is not a `BatchStats` of this estimator; if `x` is
        complex and its running mean is not; if `x` is real and `scale`, `bias` or
        `residual` is not; if `x` is complex and there is an `activation`; if `epsilon`
        is traced; if `dtype` is an integer dtype; if `in_place` is not a bool; if
        `group_size` is neither an int nor "local"; if a loop such as `lax.scan` carries
        `batch_stats` of half precision.

    Warns:
      UserWarning: if the shapes leave one value per channel, which has no variance, or
        if `batch_stats` has half precision.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> stats = estimators.init_batch_stats(2)
      >>> y, stats = batch_norm_train(x, None, None, stats, momentum=0.5)
      >>> y.round(2)
      Array([[-1., -1.],
             [ 1.,  1.]], dtype=float32)
      >>> stats.mean, stats.var
      (Array([ 1., 10.], dtype=float32), Array([  1.5, 100.5], dtype=float32))

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Algorithm 1; for convolutions, Section 3.2.
      Rota Bulo, Porzi and Kontschieder, arXiv:1712.02616, for `in_place`.
    """
    unbiased = arguments.is_unbiased(unbiased, variant)
    rule = estimators.as_estimator(estimator, momentum, unbiased)
    estimators.check_batch_stats(rule, batch_stats)
    batch_stats = running.widened(batch_stats)
    options = call_lib.Options(
        axis=axis,
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        group_size=group_size,
        activation=activation,
        in_place=in_place,
        dtype=dtype,
        variance=variance,
        sync=sync,
        variant=variant,
    )
    call = call_lib.checked(
        options, x, scale, bias, batch_stats, mask, residual, factors
    )
    y, moments, batch_stats = call_lib.normalized(options, call, batch_stats)
    return y, estimators.updated(rule, batch_stats, moments)


def batch_norm_inference(
    x: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None,
    bias: jax.typing.ArrayLike | None,
    batch_stats: estimators.BatchStats,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    residual: jax.typing.ArrayLike | None = None,
    activation: str | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    mask: jax.typing.ArrayLike | None = None,
    variant: Any = None,
) -> jax.Array:
    """Normalises by the running statistics: a fixed affine map of every channel.

    The map is computed in float32 or wider. Statistics are never rounded to half
    precision. Some variants also use statistics of `x`.

    Args:
      x: `[N, ..., C]`; integers are promoted to float32.
      scale: `[C]`, or None for 1.
      bias: `[C]`, or None for 0.
      batch_stats: running statistics, as `batch_norm_train` returns them beside `y`.
      axis: channel axis or axes of `x`.
      epsilon: a number >= 0 that is added to the variance.
      residual: as in `batch_norm_train`.
      activation: as in `batch_norm_train`.
      dtype: the dtype of `y`. Default: the dtype of `x`.
      mask: as in `batch_norm_train`, for variants that use statistics of `x`.
      variant: the variant of the training calls, or one for inference alone.

    Returns:
      `y` of the shape of `x`.

    Raises:
      ValueError, TypeError: as in `batch_norm_train`.

    Example:
      >>> import jax.numpy as jnp
      >>> stats = estimators.BatchStats(jnp.array([2.0]), jnp.array([4.0]))
      >>> batch_norm_inference(jnp.array([[4.0]]), None, None, stats, epsilon=0.0)
      Array([[1.]], dtype=float32)

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Algorithm 2, step 11.
    """
    if not isinstance(batch_stats, estimators.BatchStats):
        raise TypeError(
            f"`batch_stats` must be a `BatchStats`, got {type(batch_stats).__name__}; "
            "make one with `init_batch_stats`, or with `BatchStats(mean, var)`."
        )
    if arguments.infers(variant):
        options = call_lib.Options(
            axis=axis,
            epsilon=epsilon,
            activation=activation,
            dtype=dtype,
            variant=variant,
            initializing=True,
        )
        call = call_lib.checked(options, x, scale, bias, batch_stats, mask, residual)
        return variant.infer(call, running.state_of(batch_stats))
    mean, var = batch_stats.mean, batch_stats.var
    x, scale, bias, feature_axes = arguments.as_arrays(x, scale, bias, mean, var, axis)
    residual = arguments.as_residual(residual, x)
    output = arguments.as_output(x, epsilon=epsilon, dtype=dtype, activation=activation)
    # On a mesh of Explicit axes the statistics may be split differently from `x`.
    mean, var = (
        reduction.split_as_channels(part, x, feature_axes) for part in (mean, var)
    )
    return normalize.standardize(
        output, feature_axes, x, scale, bias, mean, var, residual
    )


def batch_moments(
    x: jax.typing.ArrayLike,
    axis: int | Sequence[int] = -1,
    mask: jax.typing.ArrayLike | None = None,
) -> moments.Moments:
    """Returns count, mean and biased variance of every channel of one batch.

    The result is differentiable to any order. The backward pass keeps `x` and nothing
    else of its size. In float32 the result is accurate to 1e-4 relative for |mean|/std
    up to 1e4.

    Args:
      x: `[N, ..., C]`, any real or complex dtype.
      axis: the channel axis or axes; all others are reduced.
      mask: boolean, broadcastable to `x`. False elements do not count, whatever they
        contain.

    Returns:
      `Moments` of shape `[C]` (the sizes of `axis`, ascending), in float32, or in
      float64 for float64 input. `mean` is complex for complex `x`. Without any valid
      element all are 0.

    Raises:
      ValueError: if `axis` is out of range or repeated, or if `mask` does not broadcast
        to `x` or is ambiguous.

    Example:
      >>> moments = batch_moments(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
      >>> moments.mean, moments.var
      (Array([2., 5.], dtype=float32), Array([1., 0.], dtype=float32))

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Algorithm 1.
    """
    x = jnp.asarray(x)
    feature_axes = arguments.as_feature_axes(axis, x.ndim)
    mask = arguments.as_mask(mask, x.shape)
    settings = reduction.Settings(feature_axes)
    found = variance_lib.local_moments(settings, x, mask)
    return moments.count_per_channel(found)
