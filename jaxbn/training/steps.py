"""One step of training or evaluation, as a jitted function of state and batch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from jaxbn.core import reduction
from jaxbn.training import gradient
from jaxbn.training import metrics as metrics_lib
from jaxbn.training.accumulation import accumulated_gradient_of
from jaxbn.training.state import TrainState


def make_train_step(
    loss_fn: gradient.LossFn,
    *,
    axis_name: reduction.AxisName | None = None,
    rngs: Sequence[str] = ("dropout",),
    mutable: Sequence[str] = (),
    micro_batches: int = 1,
) -> Callable[[TrainState, gradient.Batch], tuple[TrainState, metrics_lib.Metrics]]:
    """Returns a jitted function from state and batch to new state and metrics.

    The function computes the gradient of the mean loss of the valid examples. It
    donates the state, so use only the returned one. It is compiled once per shape of
    batch and of state.

    If the state has a field `dynamic_scale` (`flax.training.dynamic_scale`; add it in a
    subclass of `TrainState`), the loss is multiplied by the scale and the gradient is
    divided by it. If the gradient is not finite on every device, the step then changes
    only the scale and `step`. Parameters, optimiser and running statistics stay as they
    are.

    Args:
      loss_fn: called with the model, its variables bound, the batch and `train=True`.
        It may call the model several times; each call moves the running statistics.
      axis_name: axis or axes over which pmap, shard_map or vmap split the batch. Loss,
        gradient and metrics are those of all shards together. They are exact for shards
        with unequal numbers of valid examples. Give the layers their `axis_name` as
        well. Under plain jit, with or without shardings, leave it out.
      rngs: names of the random streams that the model uses. Each gets a new key in
        every step.
      mutable: collections besides `batch_stats` that the model writes, such as
        auxiliary losses. `loss_fn` finds them in `model.variables`. They are not kept.
      micro_batches: the number of parts of a batch that are processed one after the
        other, in the memory of one part. Each part is normalised by its own statistics.
        The gradient is that of all parts, and the running statistics move once, by the
        moments of all parts.

    Raises:
      ValueError: if `micro_batches` is below 1. When called: if the batch cannot be cut
        into `micro_batches` parts, if `loss_fn` returns no "loss" or a value whose
        shape is not that of the batch's `mask`, or if the state was already donated.
      TypeError: when called, if `loss_fn` does not return a mapping.
    """
    options = gradient.as_options(axis_name, rngs, mutable)
    if micro_batches < 1:
        raise ValueError(f"`micro_batches` must be at least 1, got {micro_batches}.")
    if micro_batches == 1:
        take = functools.partial(gradient.gradient_of, loss_fn, options)
    else:
        take = functools.partial(
            accumulated_gradient_of, loss_fn, options, micro_batches
        )
    return _Donating(functools.partial(_train_step, take))


def make_multi_step(
    loss_fn: gradient.LossFn,
    *,
    axis_name: reduction.AxisName | None = None,
    rngs: Sequence[str] = ("dropout",),
    mutable: Sequence[str] = (),
) -> Callable[[TrainState, gradient.Batch], tuple[TrainState, metrics_lib.Metrics]]:
    """Returns a jitted function that makes k steps in one call, under `lax.scan`.

    Every array of the batch has a leading axis of size k. The metrics are added up over
    the steps. Arguments and errors are those of `make_train_step`.
    """
    options = gradient.as_options(axis_name, rngs, mutable)
    take = functools.partial(gradient.gradient_of, loss_fn, options)
    step = functools.partial(_train_step, take)

    def steps(
        state: TrainState, batches: gradient.Batch
    ) -> tuple[TrainState, metrics_lib.Metrics]:
        state, metrics = jax.lax.scan(step, state, batches)
        return state, jax.tree.map(lambda m: jnp.sum(m, 0, dtype=m.dtype), metrics)

    return _Donating(steps)


def make_eval_step(
    loss_fn: gradient.LossFn, *, axis_name: reduction.AxisName | None = None
) -> Callable[[TrainState, gradient.Batch], metrics_lib.Metrics]:
    """Returns a jitted function from state and batch to metrics.

    The function does not change the state.

    Args:
      loss_fn: called as in `make_train_step`, but with `train=False`.
      axis_name: as in `make_train_step`.

    Raises:
      ValueError, TypeError: when called, for a wrong result of `loss_fn`, as in
        `make_train_step`.
    """

    @jax.jit
    def eval_step(state: TrainState, batch: gradient.Batch) -> metrics_lib.Metrics:
        variables = gradient.variables_of(state.params, state.batch_stats)
        values = state.apply_fn(variables, batch, train=False, method=loss_fn)
        metrics = metrics_lib.reduce(values, batch.get("mask"))
        return gradient.over_devices(metrics, axis_name)

    return eval_step


def _train_step(
    take: Callable[..., gradient.Gradient], state: TrainState, batch: gradient.Batch
) -> tuple[TrainState, metrics_lib.Metrics]:
    made = take(state, batch)
    value_fn = gradient.mean_loss(lambda params: take(state, batch, params))
    return made.applied_to(state, value_fn), made.metrics


class _Donating:
    """A jitted step that donates its state, and raises if the state is already gone.

    It is an object with methods, because `jax.shard_map` and the like copy the
    attributes of a function. With an attribute `lower`, the function that they return
    would lower the inner function.
    """

    def __init__(self, step: Callable[..., Any]):
        self._jitted: Any = jax.jit(step, donate_argnums=0)

    def __call__(self, state: TrainState, batch: gradient.Batch) -> Any:
        for leaf in jax.tree.leaves(state):
            concrete = not isinstance(leaf, jax.core.Tracer)
            if concrete and isinstance(leaf, jax.Array) and leaf.is_deleted():
                raise ValueError(
                    "`state` was donated to an earlier step and is gone; go on with "
                    "the state that the step returned, or copy it before."
                )
        return self._jitted(state, batch)

    def lower(self, state: Any, batch: Any) -> Any:
        """Lowers the step, as the `lower` of a jitted function does."""
        return self._jitted.lower(state, batch)

    def trace(self, state: Any, batch: Any) -> Any:
        return self._jitted.trace(state, batch)

    def eval_shape(self, state: Any, batch: Any) -> Any:
        return self._jitted.eval_shape(state, batch)

    def clear_cache(self) -> None:
        self._jitted.clear_cache()
