"""One step of training or evaluation, as a jitted function of state and batch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.core
import jax.numpy as jnp

from jaxbn import grouping
from jaxbn.core import reduction
from jaxbn.training import metrics as metrics_lib
from jaxbn.training.state import TrainState

Batch = Mapping[str, Any]


class LossFn(Protocol):
    """Values per example, "loss" among them; the other names are up to the user."""

    def __call__(
        self, model: Any, batch: Batch, train: bool
    ) -> Mapping[str, jax.Array]: ...


class Gradient(NamedTuple):
    """What one batch says about a state."""

    grads: Any  # Of the mean loss, for every parameter.
    metrics: metrics_lib.Metrics
    batch_stats: Any  # After the batch.
    value_fn: Callable[[Any], jax.Array]  # The mean loss by the parameters.

    def applied_to(self, state: TrainState) -> TrainState:
        """The state after one step of its optimiser.

        Optimisers that take more than a gradient are given the loss as `value`, and
        `grad` and `value_fn` for a line search.
        """
        extra_args = {
            "value": self.metrics["loss"].mean,
            "grad": self.grads,
            "value_fn": self.value_fn,
        }
        return state.apply_gradients(
            grads=self.grads, extra_args=extra_args, batch_stats=self.batch_stats
        )


def value_and_grad(
    loss_fn: LossFn,
    *,
    axis_name: reduction.AxisName | None = None,
    rngs: Sequence[str] = ("dropout",),
    mutable: Sequence[str] = (),
) -> Callable[[TrainState, Batch], Gradient]:
    """A function from state and batch to the gradient, not jitted.

    The arguments and errors are those of `make_train_step`, which is this function,
    `Gradient.applied_to` and `jax.jit`.
    """

    def gradient(state: TrainState, batch: Batch) -> Gradient:
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            grouping.axis_size(axis_name)  # Raises if the name is not bound.
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        keys = dict(zip(rngs, jax.random.split(key, len(rngs)), strict=True))

        def objective(params: Any) -> tuple[jax.Array, tuple[Any, metrics_lib.Metrics]]:
            values, updates = state.apply_fn(
                _variables(params, state.batch_stats),
                batch,
                train=True,
                method=loss_fn,
                rngs=keys,
                mutable=["batch_stats", *mutable],
            )
            local = metrics_lib.reduce(values, batch.get("mask"))
            metrics = _over_devices(local, axis_name)
            count = jnp.maximum(metrics["loss"].count, 1)
            loss = local["loss"].total / count.astype(local["loss"].total.dtype)
            return loss, (updates.get("batch_stats", state.batch_stats), metrics)

        def value_fn(params: Any) -> jax.Array:
            return objective(params)[1][1]["loss"].mean

        params = _varying(state.params, axis_name)
        grads, (batch_stats, metrics) = jax.grad(objective, has_aux=True)(params)
        grads = _over_devices(grads, axis_name)
        return Gradient(grads, metrics, batch_stats, value_fn)

    return gradient


def make_train_step(
    loss_fn: LossFn,
    *,
    axis_name: reduction.AxisName | None = None,
    rngs: Sequence[str] = ("dropout",),
    mutable: Sequence[str] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, metrics_lib.Metrics]]:
    """A jitted function from state and batch to new state and metrics.

    The gradient is that of the mean loss of the valid examples. The state is donated:
    use only the one returned. Compiled once per shape of batch.

    Args:
      loss_fn: called with the model, its variables bound, the batch and `train=True`.
        It may call the model several times; each call moves the running statistics.
      axis_name: axis or axes over which pmap, shard_map or vmap split the batch: loss,
        gradient and metrics are those of all shards together, exact for shards with
        unequal numbers of valid examples. Give the layers their `axis_name` as well.
        Under plain jit, with or without shardings, leave it out.
      rngs: names of the random streams that the model asks for; a new key each, for
        every step.
      mutable: collections besides `batch_stats` that the model writes, such as
        auxiliary losses; `loss_fn` finds them in `model.variables`. They are not kept.

    Raises:
      ValueError: when called, if `loss_fn` returns no "loss", or values whose shape is
        not that of the batch's `mask`, or if the state was donated before.
      TypeError: when called, if `loss_fn` returns no mapping.
    """
    options = {"axis_name": axis_name, "rngs": rngs, "mutable": mutable}
    return _donating(_train_step(loss_fn, **options))


def make_multi_step(
    loss_fn: LossFn,
    *,
    axis_name: reduction.AxisName | None = None,
    rngs: Sequence[str] = ("dropout",),
    mutable: Sequence[str] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, metrics_lib.Metrics]]:
    """As `make_train_step`, for k steps under `lax.scan` in one call.

    Every array of the batch has a leading axis of size k; metrics are added up over the
    steps. Arguments and errors are those of `make_train_step`.
    """
    step = _train_step(loss_fn, axis_name=axis_name, rngs=rngs, mutable=mutable)

    def steps(
        state: TrainState, batches: Batch
    ) -> tuple[TrainState, metrics_lib.Metrics]:
        state, metrics = jax.lax.scan(step, state, batches)
        return state, jax.tree.map(lambda m: jnp.sum(m, 0, dtype=m.dtype), metrics)

    return _donating(steps)


def make_eval_step(
    loss_fn: LossFn, *, axis_name: reduction.AxisName | None = None
) -> Callable[[TrainState, Batch], metrics_lib.Metrics]:
    """A jitted function from state and batch to metrics; changes nothing.

    Args:
      loss_fn: called with `train=False`.
      axis_name: as `make_train_step`.

    Raises:
      ValueError, TypeError: as `make_train_step`.
    """

    @jax.jit
    def eval_step(state: TrainState, batch: Batch) -> metrics_lib.Metrics:
        variables = _variables(state.params, state.batch_stats)
        values = state.apply_fn(variables, batch, train=False, method=loss_fn)
        metrics = metrics_lib.reduce(values, batch.get("mask"))
        return _over_devices(metrics, axis_name)

    return eval_step


def _train_step(loss_fn: LossFn, **options: Any):
    gradient_of = value_and_grad(loss_fn, **options)

    def train_step(
        state: TrainState, batch: Batch
    ) -> tuple[TrainState, metrics_lib.Metrics]:
        gradient = gradient_of(state, batch)
        return gradient.applied_to(state), gradient.metrics

    return train_step


def _donating(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step jitted, with a message for a state that was donated before."""
    jitted = jax.jit(step, donate_argnums=0)

    @functools.wraps(jitted)
    def call(state: TrainState, batch: Batch) -> Any:
        first = (jax.tree.leaves(state) or [None])[0]
        concrete = not isinstance(first, jax.core.Tracer)
        if isinstance(first, jax.Array) and concrete and first.is_deleted():
            raise ValueError(
                "`state` was donated to an earlier step and is gone; go on with the "
                "state that the step returned, or copy it before."
            )
        return jitted(state, batch)

    call.lower = jitted.lower  # type: ignore[attr-defined]
    return call


def _over_devices(tree: Any, axis_name: reduction.AxisName | None) -> Any:
    """Sums over the devices of a mapped axis."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _varying(params: Any, axis_name: reduction.AxisName | None) -> Any:
    """Marks parameters as each device's own, so that their gradients are too.

    A checked shard_map would add up the gradients of replicated parameters by itself;
    this makes all styles alike.
    """
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    manual = jax.sharding.get_abstract_mesh().manual_axes  # Those of shard_map.

    def mark(param: Any) -> Any:
        varying = reduction.varying_axes(param)
        new = tuple(name for name in names if name in manual and name not in varying)
        return jax.lax.pcast(param, new, to="varying") if new else param

    return jax.tree.map(mark, params)


def _variables(params: Any, batch_stats: Any) -> dict[str, Any]:
    return {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
