"""Steps of training and evaluation for Linen models, and the gradient alone."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxbn._core import reduction
from jaxbn._layers import accumulation
from jaxbn.models import _hooks
from jaxbn.training import _gradient, _loss_scale, _metrics, _micro_batches
from jaxbn.training._state import TrainState

NewState = tuple[TrainState, _metrics.Metrics]
_STATS, _SYNC, _MOMENTS = "batch_stats", "batch_sync", accumulation.NAME


class Gradient(NamedTuple):
    """Gradient, metrics and new running statistics of one batch.

    Attributes:
      grads: the gradient of the mean loss, for every parameter.
      metrics: the metrics of the batch.
      batch_stats: the running statistics after the batch.
      batch_sync: the states of policies after the exchange of their messages.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
      >>> net, batch = nn.Dense(1), {"x": jnp.ones((4, 2))}
      >>> def loss_fn(model, batch, train):
      ...     return {"loss": jnp.square(model(batch["x"]) - 1)[:, 0]}
      >>> variables = net.init(jax.random.key(0), batch["x"])
      >>> state = TrainState.create(net.apply, variables, optax.sgd(0.1))
      >>> gradient = value_and_grad(loss_fn)(state, batch)
      >>> int(gradient.applied_to(state).step)
      1
    """

    grads: Any
    metrics: _metrics.Metrics
    batch_stats: Any
    batch_sync: Any

    def applied_to(self, state: TrainState) -> TrainState:
        """Returns the state after one step of its optimiser.

        The optimiser gets the mean loss as `value` and the gradient as `grad`, if it
        takes them.

        Args:
          state: the state at which the gradient was computed.

        Returns:
          The new state. If the state has a `dynamic_scale` (see `make_train_step`) and
          the gradient is not finite, only the scale and the number of steps change.
        """
        new = state.apply_gradients(
            grads=self.grads,
            extra_args={"value": self.metrics["loss"].mean, "grad": self.grads},
            batch_stats=self.batch_stats,
            batch_sync=self.batch_sync,
        )
        dynamic_scale: Any = getattr(state, _loss_scale.NAME, None)
        if dynamic_scale is None:
            return new
        moved = _loss_scale.after_step(dynamic_scale, self.grads)
        kept = _loss_scale.where_finite(self.grads, new, state)
        return kept.replace(step=new.step, **{_loss_scale.NAME: moved})


def value_and_grad(
    loss_fn: _gradient.LossFn,
    *,
    axis_name: reduction.AxisName | None = None,
    rngs: Sequence[str] = ("dropout",),
    mutable: Sequence[str] = (),
    micro_batches: int = 1,
) -> Callable[[TrainState, _gradient.Batch], Gradient]:
    """Returns a function that computes the gradient from a state and a batch.

    The function is not jitted and does not donate the state. `make_train_step` combines
    it with `Gradient.applied_to` and `jax.jit`.

    Args:
      loss_fn: as in `make_train_step`.
      axis_name: as in `make_train_step`.
      rngs: as in `make_train_step`.
      mutable: as in `make_train_step`.
      micro_batches: as in `make_train_step`.

    Raises:
      ValueError, TypeError: as `make_train_step` and its step.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp, optax
      >>> net, batch = nn.Dense(1), {"x": jnp.ones((4, 2))}
      >>> variables = net.init(jax.random.key(0), batch["x"])
      >>> state = TrainState.create(net.apply, variables, optax.sgd(0.1))
      >>> loss_fn = lambda model, batch, train: {"loss": model(batch["x"])[:, 0]}
      >>> value_and_grad(loss_fn)(state, batch).grads["bias"]
      Array([1.], dtype=float32)
    """
    for name, value in (("rngs", rngs), ("mutable", mutable)):
        if isinstance(value, str):
            raise TypeError(f"`{name}` must be a sequence of names, got {value!r}.")
    _micro_batches.check(micro_batches)

    def gradient(state: TrainState, batch: _gradient.Batch) -> Gradient:
        dynamic_scale: Any = getattr(state, _loss_scale.NAME, None)
        take_gradient = functools.partial(
            _gradient.gradient_of,
            functools.partial(_run, loss_fn, axis_name, rngs, mutable, state),
            state.params,
            axis_name,
            None if dynamic_scale is None else dynamic_scale.scale,
        )
        given = _gradient.Variables(state.batch_sync, {_STATS: state.batch_stats})
        if micro_batches > 1:
            moments = accumulation.begin_accumulation(state.batch_stats)
            given.others[_MOMENTS] = moments
        grads, metrics, new = _micro_batches.gradient_in_parts(
            take_gradient,
            functools.partial(_before_the_first_part, given),
            micro_batches,
            given,
            batch,
        )
        batch_stats = accumulation.end_accumulation(
            new.others[_STATS], new.others.get(_MOMENTS, {})
        )
        return Gradient(grads, metrics, batch_stats, new.batch_sync)

    return gradient


def make_train_step(
    loss_fn: _gradient.LossFn,
    *,
    axis_name: reduction.AxisName | None = None,
    rngs: Sequence[str] = ("dropout",),
    mutable: Sequence[str] = (),
    micro_batches: int = 1,
) -> jax.stages.Wrapped:
    """Returns a jitted function from state and batch to new state and metrics.

    The function computes the gradient of the mean loss of the valid examples, and makes
    one step of the optimiser. It is what `jax.jit` returns, so it has methods such as
    `lower`. It donates the state: use only the returned one. It is compiled once per
    shape of batch and of state.

    If the state has a field `dynamic_scale` (`flax.training.dynamic_scale`; add it in a
    subclass of `TrainState`), the loss is multiplied by the scale and the gradient is
    divided by it. If the gradient is not finite on every device, the step then changes
    only the scale and `step`. Parameters, optimiser and running statistics stay as they
    are.

    Args:
      loss_fn: called with the model, its variables bound, the batch and `train=True`.
        It may call the model several times; each call updates the running statistics.
        See `LossFn`.
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
        The gradient is that of all parts. The running statistics are updated once, by
        the moments of all parts. Every part updates the state of other modules.

    Returns:
      A function of a `TrainState` and a batch, a mapping of names to arrays. An entry
      `mask`, boolean and of the shape of the values, tells which examples count. The
      function returns the new state and `Metrics`.

    Raises:
      ValueError: if `micro_batches` is below 1. When called: if the batch cannot be cut
        into `micro_batches` parts, or if `loss_fn` returns no "loss" or a value whose
        shape is not that of the batch's `mask`. For a state that was already donated,
        JAX raises its own error.
      TypeError: if `rngs` or `mutable` is one name. When called: if `loss_fn` does not
        return a mapping, or if the optimiser uses a line search. Such an optimiser
        needs the loss as a function, which only a step of your own can pass.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp, optax
      >>> net, batch = nn.Dense(1), {"x": jnp.ones((4, 2))}
      >>> variables = net.init(jax.random.key(0), batch["x"])
      >>> state = TrainState.create(net.apply, variables, optax.sgd(0.5))
      >>> loss_fn = lambda model, batch, train: {"loss": model(batch["x"])[:, 0]}
      >>> state, metrics = make_train_step(loss_fn, micro_batches=2)(state, batch)
      >>> state.params["bias"], int(metrics["loss"].count)
      (Array([-0.5], dtype=float32), 4)
    """
    gradient_of = value_and_grad(
        loss_fn,
        axis_name=axis_name,
        rngs=rngs,
        mutable=mutable,
        micro_batches=micro_batches,
    )
    return jax.jit(_train_step(gradient_of), donate_argnums=0)


def make_multi_step(loss_fn: _gradient.LossFn, **options: Any) -> jax.stages.Wrapped:
    """Returns a jitted function that makes k steps in one call, under `lax.scan`.

    Args:
      loss_fn: as in `make_train_step`.
      **options: the options of `make_train_step`.

    Returns:
      A function like that of `make_train_step`. Every array of the batch has a leading
      axis of size k. The metrics are added up over the steps.

    Raises:
      ValueError, TypeError: as `make_train_step` and its step.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp, optax
      >>> net, batches = nn.Dense(1), {"x": jnp.ones((3, 4, 2))}
      >>> variables = net.init(jax.random.key(0), batches["x"][0])
      >>> state = TrainState.create(net.apply, variables, optax.sgd(0.5))
      >>> loss_fn = lambda model, batch, train: {"loss": model(batch["x"])[:, 0]}
      >>> state, metrics = make_multi_step(loss_fn)(state, batches)
      >>> int(state.step), int(metrics["loss"].count)
      (3, 12)
    """
    step = _train_step(value_and_grad(loss_fn, **options))

    def train_steps(state: TrainState, batches: _gradient.Batch) -> NewState:
        state, metrics = jax.lax.scan(step, state, batches)
        return state, _metrics.over_steps(metrics)

    return jax.jit(train_steps, donate_argnums=0)


def make_eval_step(
    loss_fn: _gradient.LossFn, *, axis_name: reduction.AxisName | None = None
) -> jax.stages.Wrapped:
    """Returns a jitted function from state and batch to metrics.

    The function does not change the state.

    Args:
      loss_fn: called as in `make_train_step`, but with `train=False`.
      axis_name: as in `make_train_step`.

    Returns:
      A function of a `TrainState` and a batch that returns `Metrics`. Their sum over
      several batches is exact.

    Raises:
      ValueError, TypeError: when called, for a wrong result of `loss_fn`, as in
        `make_train_step`.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp, optax
      >>> net, batch = nn.Dense(1), {"x": jnp.ones((4, 2))}
      >>> variables = net.init(jax.random.key(0), batch["x"])
      >>> state = TrainState.create(net.apply, variables, optax.sgd(0.5))
      >>> loss_fn = lambda model, batch, train: {"loss": model(batch["x"])[:, 0]}
      >>> int(make_eval_step(loss_fn)(state, batch)["loss"].count)
      4
    """

    @jax.jit
    def eval_step(state: TrainState, batch: _gradient.Batch) -> _metrics.Metrics:
        variables = _filled({"params": state.params, _STATS: state.batch_stats})
        values = state.apply_fn(variables, batch, train=False, method=loss_fn)
        metrics = _metrics.reduce(values, batch.get("mask"))
        return _gradient.over_devices(metrics, axis_name)

    return eval_step


def _train_step(
    gradient_of: Callable[[TrainState, _gradient.Batch], Gradient],
) -> Callable[[TrainState, _gradient.Batch], NewState]:
    """Returns the step without `jax.jit`."""

    def train_step(state: TrainState, batch: _gradient.Batch) -> NewState:
        gradient = gradient_of(state, batch)
        return gradient.applied_to(state), gradient.metrics

    return train_step


def _run(
    loss_fn: _gradient.LossFn,
    axis_name: reduction.AxisName | None,
    rngs: Sequence[str],
    mutable: Sequence[str],
    state: TrainState,
    params: Any,
    variables: _gradient.Variables,
    batch: _gradient.Batch,
    part: jax.Array | None,
) -> tuple[Mapping[str, jax.Array], _gradient.Variables]:
    """Runs a Linen model; see `_gradient.Run`."""
    # Dropout differs between parts, steps and devices.
    key = state.key if part is None else jax.random.fold_in(state.key, part)
    key = jax.random.fold_in(key, state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    keys = jax.random.split(key, len(rngs))

    given = {_SYNC: variables.batch_sync, **variables.others}
    collecting = _MOMENTS in given
    checked = _hooks.every_layer_accumulates if collecting else contextlib.nullcontext
    with checked():
        values, updates = state.apply_fn(
            _filled({"params": params, **given}),
            batch,
            train=True,
            method=loss_fn,
            rngs=dict(zip(rngs, keys, strict=True)),
            mutable=[*given, *mutable],
        )
    new = {name: updates.get(name, old) for name, old in given.items()}
    return values, _gradient.Variables(new.pop(_SYNC), new)


def _before_the_first_part(
    given: _gradient.Variables, shapes: _gradient.Variables
) -> _gradient.Variables:
    """Returns the variables before the first part, in the structure of those after it.

    A pass may return a dict for a FrozenDict, and only a pass shows what layers
    collect.
    """
    stats = given.others[_STATS]
    moments = accumulation.before_the_first_pass(stats, shapes.others[_MOMENTS])
    structure = jax.tree.structure(shapes.others[_STATS])
    stats = jax.tree.unflatten(structure, jax.tree.leaves(stats))
    return given._replace(others={_STATS: stats, _MOMENTS: moments})


def _filled(variables: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables for a model's `apply`, without an empty collection."""
    return {
        name: collection
        for name, collection in variables.items()
        if collection or name == "params"
    }
