"""The code that the layers of all frameworks share; it imports no framework.

A layer holds fields and variables. This module decides which statistics normalise,
which statistics are updated and which parameters are trained. It then calls the
functional form.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn import (
    call_site,
    checks,
    estimation,
    functional,
    moments_collection,
    switches,
    sync_policies,
)
from jaxbn.core import estimators, moments, passes, reduction, running

# Fields of a layer that `batch_norm_train` takes under the same name.
_OPTIONS = (
    "axis",
    "momentum",
    "epsilon",
    "unbiased",
    "activation",
    "in_place",
    "variance",
    "use_fast_variance",
    "force_float32_reductions",
)

# Fields that need a bound axis, or a batch of the size used in training.
_GROUPS = ("axis_name", "axis_index_groups", "group_size", "sync")


class Layer(Protocol):
    """The fields of a layer that are read here; see `jaxbn.linen.BatchNorm`."""

    axis: Any
    momentum: Any
    epsilon: Any
    param_dtype: Any
    activation: Any
    in_place: Any
    variance: Any
    use_fast_variance: Any
    force_float32_reductions: Any
    estimator: Any
    unbiased: Any
    sync: Any


def channels(layer: Layer, x: jax.Array) -> tuple[int, ...]:
    """Returns the shape of parameters and statistics for an input."""
    axes = checks.as_feature_axes(layer.axis, x.ndim)
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


def estimator(layer: Layer) -> estimators.Estimator:
    """Returns the estimator of a layer, which updates its running statistics."""
    return estimation.as_estimator(
        "estimator", layer.estimator, layer.momentum, layer.unbiased
    )


def state_type(layer: Layer) -> type[Any]:
    """Returns the type of the running statistics, whose fields name the variables.

    The type is a `NamedTuple`.

    Raises:
      TypeError: if the estimator keeps another kind of state.
    """
    if layer.estimator == "ema":
        return running.BatchStats
    return estimation.state_type(estimator(layer))


def init_state(layer: Layer, shape: tuple[int, ...], x_dtype: jnp.dtype) -> Any:
    """Returns the running statistics of a new layer.

    They are a `BatchStats`, or the state of another estimator. Their dtype is float32,
    or `param_dtype` if `force_float32_reductions` is False. For complex inputs it is
    complex.
    """
    dtype = jnp.float32 if layer.force_float32_reductions else layer.param_dtype
    if jnp.issubdtype(x_dtype, jnp.complexfloating):
        dtype = jnp.promote_types(dtype, jnp.complex64)
    return estimator(layer).init(shape, dtype)


def init_sync(
    layer: Layer, shape: tuple[int, ...], x_dtype: jnp.dtype
) -> sync_policies.State:
    """Returns the state of the policy of a new layer; empty if it needs none."""
    dtype = reduction.reduction_dtype(x_dtype)
    return sync_policies.init_state(layer.sync, shape, dtype)


def before_the_first_pass(layer: Layer, state: Any) -> passes.Passes:
    """Returns the `Passes` of a layer that has not collected any moments yet."""
    if layer.force_float32_reductions:
        state = estimation.widened(state, carried=False)
    return passes.before_the_first(estimator(layer), state)


def apply(
    layer: Layer,
    on: switches.Switches,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    state: Any,
    *,
    sync_state: sync_policies.State,
    collected: moments.Moments | None = None,
    collecting: bool = False,
    mask: jax.typing.ArrayLike | None,
    residual: jax.typing.ArrayLike | None,
    dtype: jax.typing.DTypeLike,
    initializing: bool,
    path: str = "",
) -> tuple[jax.Array, Any, sync_policies.State]:
    """Returns the output of a layer, its new running statistics and its policy's state.

    If nothing is updated, the statistics are None and the state is empty.

    Args:
      layer: the layer, of which only fields are read.
      on: the switches of this call.
      x: `[N, ..., C]`.
      scale: `[C]` or None.
      bias: `[C]` or None.
      state: the running statistics, as `init_state` returns them.
      sync_state: the state of the policy, as `init_sync` returns it.
      collecting: merge the moments of this pass with `collected`, and return a `Passes`
        instead of new running statistics. A policy that remembers steps is not used;
        the moments are those of all workers.
      collected: moments of the passes before this one, or None.
      mask: as in `jaxbn.batch_norm_train`.
      residual: as in `jaxbn.batch_norm_train`.
      dtype: the dtype of the output.
      initializing: True updates nothing, and needs no bound axis name.
      path: the path of the layer in its model, for messages.
    """
    scale = scale if on.train_scale else jax.lax.stop_gradient(scale)
    bias = bias if on.train_bias else jax.lax.stop_gradient(bias)

    moves = on.update_running_average and not initializing
    if not moves:  # The backward pass of such a call sends nothing to other workers.
        sync_state = jax.lax.stop_gradient(sync_state)
    follow = estimator(layer)
    state = estimation.as_complex(follow, state) if jnp.iscomplexobj(x) else state
    if not moves and layer.force_float32_reductions:
        # The state is not written, so its dtype may change without a warning.
        state = estimation.in_wide_dtypes(state)
    if collecting:
        if layer.force_float32_reductions:
            state = estimation.widened(state, carried=False)
        state = passes.before_the_first(follow, state)
        if collected is not None:
            moments_collection.check_shapes(path, collected.mean, state.moments.mean)
            # The first complex batch makes the moments complex, as it does the state.
            collected = jax.tree.map(
                lambda part, like: part.astype(
                    jnp.promote_types(part.dtype, like.dtype)
                ),
                collected,
                state.moments,
            )
            state = state._replace(moments=collected)
        follow = passes.Accumulating(follow)

    def train() -> tuple[jax.Array, Any, sync_policies.State]:
        groups = {} if initializing else {o: getattr(layer, o) for o in _GROUPS}
        remembers = bool(sync_state) and not initializing
        if remembers and collecting:  # A pass is only a part of a step.
            groups["sync"], remembers = sync_policies.Exact(), False
        with call_site.no_warnings() if initializing else contextlib.nullcontext():
            with_sync = sync_policies.WithSync(state, sync_state)
            y, moved = functional.batch_norm_train(
                x,
                scale,
                bias,
                with_sync if remembers else state,
                mask=mask,
                residual=residual,
                dtype=dtype,
                # The state of the default estimator needs no check at every call.
                estimator=follow if collecting or layer.estimator != "ema" else None,
                **groups,
                **{option: getattr(layer, option) for option in _OPTIONS},
            )
        if isinstance(moved, sync_policies.WithSync):
            return y, moved.batch_stats, moved.sync
        return y, moved, {}

    synced: sync_policies.State = {}
    if on.use_running_average:
        # These matter only in training, but a mistake should show at the first call.
        checks.as_variance(layer.variance, layer.use_fast_variance)
        checks.check_activation(x, layer.activation, layer.in_place)
        y = functional.batch_norm_inference(
            x,
            scale,
            bias,
            follow.estimate(state),
            axis=layer.axis,
            epsilon=layer.epsilon,
            residual=residual,
            activation=layer.activation,
            dtype=dtype,
        )
        moved = None
        if on.update_running_average:
            _, moved, synced = train()
    else:
        y, moved, synced = train()
    return (y, moved, synced) if moves else (y, None, {})
