"""The gradient of one batch: the part of a step that comes before the optimiser."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxbn import grouping, model_layers, moments_collection, sync_policies
from jaxbn.core import reduction
from jaxbn.training import finite
from jaxbn.training import metrics as metrics_lib
from jaxbn.training.state import TrainState

Batch = Mapping[str, Any]


class LossFn(Protocol):
    """A function that returns values per example; one of them is named "loss"."""

    def __call__(
        self, model: Any, batch: Batch, train: bool
    ) -> Mapping[str, jax.Array]: ...


class Gradient(NamedTuple):
    """Gradient, metrics and new running statistics of one batch."""

    grads: Any  # The gradient of the mean loss, for every parameter.
    metrics: metrics_lib.Metrics
    batch_stats: Any
    batch_sync: Any  # The states of policies after the exchange.

    def applied_to(
        self, state: TrainState, value_fn: Callable[[Any], jax.Array] | None = None
    ) -> TrainState:
        """Returns the state after one step of its optimiser.

        Args:
          state: the state at which the gradient was computed.
          value_fn: the mean loss as a function of the parameters, for optimisers with a
            line search. Without it they still get the loss as `value`, and `grad`.

        Returns:
          The new state. If the state has a `dynamic_scale` (see `make_train_step`) and
          the gradient is not finite, only the scale and the number of steps change.
        """
        extra_args = {"value": self.metrics["loss"].mean, "grad": self.grads}
        if value_fn is not None:
            extra_args["value_fn"] = value_fn
        new = state.apply_gradients(
            grads=self.grads,
            extra_args=extra_args,
            batch_stats=self.batch_stats,
            batch_sync=self.batch_sync,
        )
        return finite.after_scaled_step(self.grads, new, state)


class Options(NamedTuple):
    """The arguments of a step besides the loss."""

    axis_name: reduction.AxisName | None
    rngs: Sequence[str]
    mutable: Sequence[str]


def value_and_grad(
    loss_fn: LossFn,
    *,
    axis_name: reduction.AxisName | None = None,
    rngs: Sequence[str] = ("dropout",),
    mutable: Sequence[str] = (),
) -> Callable[[TrainState, Batch], Gradient]:
    """Returns a function that computes the gradient from a state and a batch.

    The function is not jitted and does not donate the state. `make_train_step` combines
    it with `Gradient.applied_to` and `jax.jit`; the arguments are explained there.

    Raises:
      ValueError, TypeError: when called, as for `make_train_step`.
    """
    options = as_options(axis_name, rngs, mutable)
    return functools.partial(gradient_of, loss_fn, options)


def as_options(
    axis_name: reduction.AxisName | None, rngs: Sequence[str], mutable: Sequence[str]
) -> Options:
    """Checks the options and returns them.

    Raises:
      TypeError: if one name is given where a sequence is expected.
    """
    for name, value in (("rngs", rngs), ("mutable", mutable)):
        if isinstance(value, str):
            raise TypeError(f"`{name}` must be a sequence of names, got {value!r}.")
    return Options(axis_name, rngs, mutable)


def gradient_of(
    loss_fn: LossFn,
    options: Options,
    state: TrainState,
    batch: Batch,
    params: Any = None,
) -> Gradient:
    """Returns the gradient of an ordinary step; see `gradient_and_moments`."""
    return gradient_and_moments(loss_fn, options, state, batch, params, None)[0]


def gradient_and_moments(
    loss_fn: LossFn,
    options: Options,
    state: TrainState,
    batch: Batch,
    params: Any,
    collected: Any,
) -> tuple[Gradient, Any]:
    """Returns the gradient, and the collection `batch_moments` after the pass.

    Args:
      loss_fn: the loss function, as in `make_train_step`.
      options: the options of the step.
      state: parameters, running statistics and key.
      batch: the batch of the step.
      params: parameters to use instead of those of the state, or None.
      collected: the collection `batch_moments` of the passes before this one. With it
        the layers collect their moments and keep their statistics, while the state of
        other modules moves. With None no moments are collected.
    """
    axis_name = options.axis_name
    key = jax.random.fold_in(state.key, state.step)
    if axis_name is not None:
        grouping.axis_size(axis_name)  # Raises if the name is not bound.
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    keys = jax.random.split(key, len(options.rngs))
    rngs = dict(zip(options.rngs, keys, strict=True))

    mutable = ["batch_stats", sync_policies.NAME, *options.mutable]
    checked = contextlib.nullcontext
    if collected is not None:
        mutable.append(moments_collection.NAME)
        checked = model_layers.every_layer_collects

    # The state keeps sums of backward passes of the unscaled loss.
    given = finite.scaled_messages(state)

    def objective(params: Any, said: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        variables = variables_of(params, state.batch_stats)
        if given:
            variables[sync_policies.NAME] = sync_policies.with_said(given, said)
        if collected:
            variables[moments_collection.NAME] = collected
        with checked():
            values, updates = state.apply_fn(
                variables,
                batch,
                train=True,
                method=loss_fn,
                rngs=rngs,
                mutable=mutable,
            )
        local = metrics_lib.reduce(values, batch.get("mask"))
        metrics = over_devices(local, axis_name)
        count = jnp.maximum(metrics["loss"].count, 1)
        loss = local["loss"].total / count.astype(local["loss"].total.dtype)
        moved = updates.get("batch_stats", state.batch_stats)
        synced = updates.get(sync_policies.NAME, given)
        made = updates.get(moments_collection.NAME, collected)
        return finite.scaled(state, loss), (moved, synced, made, metrics)

    params = varying(state.params if params is None else params, axis_name)
    (grads, said), (batch_stats, batch_sync, batch_moments, metrics) = jax.grad(
        objective, argnums=(0, 1), has_aux=True
    )(params, sync_policies.said_of(given))
    said = after_all(grads, said)
    grads = finite.unscaled(state, over_devices(grads, axis_name))
    batch_sync = finite.unscaled_messages(
        state, sync_policies.exchange(batch_sync, said, axis_name=axis_name)
    )
    return Gradient(grads, metrics, batch_stats, batch_sync), batch_moments


def mean_loss(gradient_at: Callable[[Any], Gradient]) -> Callable[[Any], jax.Array]:
    """Returns the mean loss of all devices as a function of the parameters.

    Optimisers with a line search need it.
    """

    def value_and_grads(params: Any) -> tuple[jax.Array, Any]:
        gradient = gradient_at(params)
        return gradient.metrics["loss"].mean, gradient.grads

    return with_gradient(value_and_grads)


def with_gradient(
    value_and_grads: Callable[[Any], tuple[jax.Array, Any]],
) -> Callable[[Any], jax.Array]:
    """Returns the function of the values, with the given gradient as its derivative.

    JAX's own derivative of a sum over devices depends on the parallel style.
    """

    @jax.custom_vjp
    def value_fn(params: Any) -> jax.Array:
        return value_and_grads(params)[0]

    def backward(grads: Any, cotangent: jax.Array) -> tuple[Any]:
        return (jax.tree.map(lambda g: cotangent.astype(g.dtype) * g, grads),)

    value_fn.defvjp(value_and_grads, backward)
    return value_fn


def over_devices(tree: Any, axis_name: reduction.AxisName | None) -> Any:
    """Sums a tree over the devices of a mapped axis."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def after_all(grads: Any, said: Any) -> Any:
    """Returns the messages unchanged, but only after all gradients are computed.

    Otherwise the GPU compiler fuses the backward pass of a layer with the exchange of
    messages into one kernel, and that layer waits for the exchange.
    """
    return jax.lax.optimization_barrier((said, grads))[0] if said else said


def varying(params: Any, axis_name: reduction.AxisName | None) -> Any:
    """Marks parameters as each device's own, so that their gradients are too.

    A checked shard_map would add up the gradients of replicated parameters by itself.
    With this mark all parallel styles behave alike.
    """
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    manual = jax.sharding.get_abstract_mesh().manual_axes  # Set by shard_map.

    def mark(param: Any) -> Any:
        varying = reduction.varying_axes(param)
        new = tuple(name for name in names if name in manual and name not in varying)
        return jax.lax.pcast(param, new, to="varying") if new else param

    return jax.tree.map(mark, params)


def variables_of(params: Any, batch_stats: Any) -> dict[str, Any]:
    """Returns the variables for a model's `apply`, without an empty collection."""
    return {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
