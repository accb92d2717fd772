"""One call of a layer, in training or inference.

A layer holds fields and variables. This module reads the fields, decides which
statistics normalise and whether to update them, and calls the functions that normalise.
It returns what the layer stores.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn import estimators, functional
from jaxbn._core import arguments, moments, reduction, running
from jaxbn._core import call as call_lib
from jaxbn._layers import accumulation
from jaxbn._layers.switches import Switches
from jaxbn.estimators import BatchStats


class LayerFields(Protocol):
    """The fields of a layer that are read here; see `jaxbn.linen.BatchNorm`."""

    axis: Any
    momentum: Any
    epsilon: Any
    param_dtype: Any
    axis_name: Any
    axis_index_groups: Any
    use_fast_variance: Any
    force_float32_reductions: Any
    group_size: Any
    unbiased: Any
    activation: Any
    in_place: Any
    variance: Any
    estimator: Any
    sync: Any
    variant: Any


class Result(NamedTuple):
    """The output of a call, and what the layer has to store."""

    y: jax.Array
    batch_stats: BatchStats | None = None  # None: they stay unchanged.
    accumulated: accumulation.Accumulated | None = None  # None: it does not accumulate.


def channels(layer: LayerFields, x: jax.Array) -> tuple[int, ...]:
    """Returns the shape of parameters and statistics for an input."""
    axes = arguments.as_feature_axes(layer.axis, x.ndim)
    return tuple(x.shape[a] for a in axes)


def as_channels(num_features: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of parameters and statistics, from the sizes that a user gives.

    Raises:
      ValueError: if a size is not a positive integer, or if there is no size.
    """
    many = isinstance(num_features, Sequence)
    sizes = tuple(num_features) if many else (num_features,)
    whole = all(
        isinstance(size, (int, np.integer)) and not isinstance(size, bool)
        for size in sizes
    )
    if not sizes or not whole or min(sizes) < 1:
        raise ValueError(
            "`num_features` must be the size of the channel axis, at least 1, or one "
            f"size per channel axis, got {num_features!r}."
        )
    return tuple(map(int, sizes))


def estimator(layer: LayerFields) -> estimators.Estimator:
    """Returns the estimator of a layer, which updates its running statistics."""
    unbiased = arguments.is_unbiased(layer.unbiased, layer.variant)
    return estimators.as_estimator(layer.estimator, layer.momentum, unbiased)


def init_batch_stats(
    layer: LayerFields, shape: tuple[int, ...], x_dtype: jnp.dtype
) -> BatchStats:
    """Returns the running statistics of a new layer, and the state of its policy
    or variant.

    Their dtype is float32, or `param_dtype` if `force_float32_reductions` is False. For
    complex inputs the mean is complex.
    """
    dtype = jnp.float32 if layer.force_float32_reductions else layer.param_dtype
    if jnp.issubdtype(x_dtype, jnp.complexfloating):
        dtype = jnp.promote_types(dtype, jnp.complex64)
    stats = estimator(layer).init(shape, dtype)
    dtype = reduction.reduction_dtype(x_dtype)
    return estimators.with_first_state(stats, layer.sync, layer.variant, dtype)


def apply(
    layer: LayerFields,
    on: Switches,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    batch_stats: BatchStats,
    *,
    accumulating: bool = False,
    before: moments.Moments | None = None,
    mask: jax.typing.ArrayLike | None,
    residual: jax.typing.ArrayLike | None,
    factors: arguments.Factors | None,
    dtype: jax.typing.DTypeLike,
    initializing: bool,
    path: str = "",
) -> Result:
    """Returns the output of a layer, and what it has to store.

    Args:
      layer: the layer; only its fields are read.
      on: the switches of this call.
      x: `[N, ..., C]`.
      scale: `[C]` or None.
      bias: `[C]` or None.
      batch_stats: the running statistics and the state of the policy.
      accumulating: merge the moments of this pass with those `before`, and do not
        update the running statistics. A policy with a state is not applied, because a
        pass is only a part of a step; the moments are those of all workers.
      before: the moments of the passes before this one, or None.
      mask: as in `jaxbn.batch_norm_train`.
      residual: as in `jaxbn.batch_norm_train`.
      factors: as in `jaxbn.batch_norm_train`.
      dtype: the dtype of the output.
      initializing: True updates nothing, and needs no bound axis name.
      path: the path of the layer in its model, for messages.
    """
    scale = scale if on.train_scale else jax.lax.stop_gradient(scale)
    bias = bias if on.train_bias else jax.lax.stop_gradient(bias)
    moves = on.update_running_average and not initializing
    rule = estimator(layer)
    if jnp.iscomplexobj(x):
        batch_stats = running.as_complex(rule, batch_stats)
    if not moves:
        # The backward pass of such a call sends no messages to other workers.
        sync = jax.lax.stop_gradient(batch_stats.sync)
        batch_stats = batch_stats._replace(sync=sync)
    if layer.force_float32_reductions and moves:
        batch_stats = running.widened(batch_stats, carried=not accumulating)
    elif layer.force_float32_reductions:
        # They are not stored, so their dtype may change without a warning.
        batch_stats = running.in_wide_dtypes(batch_stats)

    y = None
    if on.use_running_average:
        # Only training needs these options, but a mistake should show at the first
        # call.
        arguments.check_variance(layer.variance)
        arguments.check_activation(x, layer.activation, layer.in_place)
        y = functional.batch_norm_inference(
            x,
            scale,
            bias,
            batch_stats,
            axis=layer.axis,
            epsilon=layer.epsilon,
            residual=residual,
            activation=layer.activation,
            dtype=dtype,
            mask=mask,
            variant=None if initializing else layer.variant,
        )
        if not on.update_running_average:
            return Result(y)

    options = _options(layer, dtype, initializing)
    if accumulating and batch_stats.sync:
        options = options._replace(sync=None, group_size=None)
    checked = call_lib.checked(
        options, x, scale, bias, batch_stats, mask, residual, factors
    )
    trained, found, batch_stats = call_lib.normalized(options, checked, batch_stats)
    y = trained if y is None else y
    if not moves:
        return Result(y)
    if accumulating:
        accumulated = accumulation.add(rule, batch_stats, before, found, path)
        return Result(y, accumulated=accumulated)
    return Result(y, estimators.updated(rule, batch_stats, found))


def _options(
    layer: LayerFields, dtype: jax.typing.DTypeLike, initializing: bool
) -> call_lib.Options:
    """Returns the options of a call in training."""
    variance = layer.variance
    if layer.use_fast_variance:
        if variance == "unconditional":
            raise ValueError(
                "`use_fast_variance` means `variance='fast'`, got 'unconditional' as "
                "well; leave one of them out."
            )
        variance = "fast"
    options = call_lib.Options(
        axis=layer.axis,
        epsilon=layer.epsilon,
        activation=layer.activation,
        in_place=layer.in_place,
        dtype=dtype,
        variance=variance,
        force_float32_reductions=layer.force_float32_reductions,
        initializing=initializing,
    )
    if initializing:  # No axis is bound, and the batch may have any size.
        return options
    return options._replace(
        axis_name=layer.axis_name,
        axis_index_groups=layer.axis_index_groups,
        group_size=layer.group_size,
        sync=layer.sync,
        variant=layer.variant,
    )
