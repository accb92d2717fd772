"""Steps of training and evaluation for NNX models, which they change in place."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jaxbn import nnx as jaxbn_nnx
from jaxbn._core import reduction
from jaxbn.models import _accumulate
from jaxbn.training import _gradient, _loss_scale, _metrics, _micro_batches
from jaxbn.training._state import taken_by

_SYNC = nnx.Any(jaxbn_nnx.BatchSync, jaxbn_nnx.OwnBatchSync)

Step = Callable[[Any, nnx.Optimizer, _gradient.Batch], _metrics.Metrics]


def make_nnx_train_step(
    loss_fn: _gradient.LossFn,
    *,
    axis_name: reduction.AxisName | None = None,
    micro_batches: int = 1,
) -> Step:
    """Returns a jitted function from model, `nnx.Optimizer` and batch to metrics.

    The function changes model and optimiser in place. It computes the gradient of the
    mean loss of the valid examples with respect to the variables that the optimiser
    updates (its `wrt`). The attributes of the model do not change, because a copy is
    put in training mode. It is what `nnx.jit` returns.

    If the optimiser has an attribute `dynamic_scale`, a `LossScale`, the loss is
    multiplied by the scale and the gradient is divided by it. If the gradient is not
    finite on every device, the step then changes only the scale and `optimizer.step`.

    Args:
      loss_fn: called with the model in training mode, the batch and `train=True`. The
        loss function of `make_train_step` works if the model takes `train`.
      axis_name: axis or axes over which `nnx.pmap`, `nnx.shard_map` or `nnx.vmap` split
        the batch, as in `make_train_step`.
      micro_batches: the number of parts of a batch that are processed one after the
        other, as in `make_train_step`. Every part updates other state, such as the
        counts of random streams.

    Raises:
      ValueError, TypeError: as `make_train_step` and its step. When called with
        `micro_batches` above 1: if a layer is Flax's, or within `jaxbn.accumulate`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxbn.nnx import BatchNorm
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=rngs), BatchNorm(2, rngs=rngs))
      >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
      >>> def loss_fn(model, batch, train):
      ...     return {"loss": jnp.sum((model(batch["x"]) - batch["y"]) ** 2, -1)}
      >>> batch = {"x": jnp.eye(3), "y": jnp.ones((3, 2))}
      >>> metrics = make_nnx_train_step(loss_fn)(model, optimizer, batch)
      >>> int(metrics["loss"].count), int(optimizer.step[...])
      (3, 1)
    """
    return nnx.jit(_train_step(loss_fn, axis_name, micro_batches))


def make_nnx_multi_step(loss_fn: _gradient.LossFn, **options: Any) -> Step:
    """Returns a jitted function that makes k steps in one call, under `nnx.scan`.

    Args:
      loss_fn: as in `make_nnx_train_step`.
      **options: the options of `make_nnx_train_step`.

    Returns:
      A function like that of `make_nnx_train_step`. Every array of the batch has a
      leading axis of size k. The metrics are added up over the steps.

    Raises:
      ValueError, TypeError: as `make_nnx_train_step` and its step.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
      >>> loss_fn = lambda model, batch, train: {"loss": model(batch["x"])[:, 0]}
      >>> batches = {"x": jnp.ones((5, 4, 3))}
      >>> metrics = make_nnx_multi_step(loss_fn)(model, optimizer, batches)
      >>> int(metrics["loss"].count), int(optimizer.step[...])
      (20, 5)
    """
    step = _train_step(loss_fn, **options)

    def train_steps(
        model: Any, optimizer: nnx.Optimizer, batches: _gradient.Batch
    ) -> _metrics.Metrics:
        def one(carry: tuple[Any, nnx.Optimizer], batch: _gradient.Batch):
            return carry, step(*carry, batch)

        axes = (nnx.Carry, 0)
        scan = nnx.scan(one, in_axes=axes, out_axes=axes)
        return _metrics.over_steps(scan((model, optimizer), batches)[1])

    return nnx.jit(train_steps)


def make_nnx_eval_step(
    loss_fn: _gradient.LossFn, *, axis_name: reduction.AxisName | None = None
) -> Callable[[Any, _gradient.Batch], _metrics.Metrics]:
    """Returns a jitted function from model and batch to metrics.

    The function does not change the model.

    Args:
      loss_fn: called with a copy of the model in evaluation mode, the batch and
        `train=False`.
      axis_name: as in `make_nnx_train_step`.

    Returns:
      A function of model and batch that returns `Metrics`. Their sum over several
      batches is exact.

    Raises:
      ValueError, TypeError: when called, as for `make_eval_step`.

    Example:
      >>> import jax.numpy as jnp
      >>> model, batch = nnx.Linear(3, 1, rngs=nnx.Rngs(0)), {"x": jnp.ones((4, 3))}
      >>> loss_fn = lambda model, batch, train: {"loss": model(batch["x"])[:, 0]}
      >>> int(make_nnx_eval_step(loss_fn)(model, batch)["loss"].count)
      4
    """

    @nnx.jit
    def eval_step(model: Any, batch: _gradient.Batch) -> _metrics.Metrics:
        copy = nnx.clone(model)
        copy.eval()
        values = loss_fn(copy, batch, train=False)
        metrics = _metrics.reduce(values, batch.get("mask"))
        return _gradient.over_devices(metrics, axis_name)

    return eval_step


def _train_step(
    loss_fn: _gradient.LossFn,
    axis_name: reduction.AxisName | None = None,
    micro_batches: int = 1,
) -> Step:
    """Returns the step without `nnx.jit`."""
    _micro_batches.check(micro_batches)
    collecting = _accumulate.accumulate if micro_batches > 1 else contextlib.nullcontext

    def train_step(
        model: Any, optimizer: nnx.Optimizer, batch: _gradient.Batch
    ) -> _metrics.Metrics:
        before = nnx.clone(nnx.state((model, optimizer)))
        dynamic_scale = _dynamic_scale_of(optimizer)
        with collecting(model):
            graph, params, sync, others = nnx.split(model, optimizer.wrt, _SYNC, ...)
            take_gradient = functools.partial(
                _gradient.gradient_of,
                functools.partial(_run, loss_fn, graph, optimizer.wrt),
                params,
                axis_name,
                None if dynamic_scale is None else dynamic_scale.scale,
            )
            given = _gradient.Variables(sync, others)
            grads, metrics, new = _micro_batches.gradient_in_parts(
                take_gradient, lambda shapes: given, micro_batches, given, batch
            )
            nnx.update(model, new.batch_sync, new.others)

        arguments = {"value": metrics["loss"].mean, "grad": grads}
        optimizer.update(model, grads, **taken_by(optimizer.tx.update, arguments))
        if dynamic_scale is not None:
            step, after = optimizer.step[...], nnx.state((model, optimizer))
            kept = _loss_scale.where_finite(grads, after, before)
            nnx.update((model, optimizer), kept)
            optimizer.step[...] = step
            moved = _loss_scale.after_step(dynamic_scale, grads)
            getattr(optimizer, _loss_scale.NAME).set_value(moved)
        return metrics

    return train_step


def _dynamic_scale_of(optimizer: nnx.Optimizer) -> Any:
    """Returns the `DynamicScale` of an optimiser, or None."""
    variable = getattr(optimizer, _loss_scale.NAME, None)
    if isinstance(variable, _loss_scale.LossScale | None):
        return None if variable is None else variable.get_value()
    raise TypeError(
        "`optimizer.dynamic_scale` must be a `jaxbn.training.LossScale`, got "
        f"{type(variable).__name__}; write `LossScale(DynamicScale())`."
    )


def _run(
    loss_fn: _gradient.LossFn,
    graph: Any,
    wrt: Any,
    params: Any,
    variables: _gradient.Variables,
    batch: _gradient.Batch,
    part: jax.Array | None,
) -> tuple[Mapping[str, jax.Array], _gradient.Variables]:
    """Runs an NNX model; see `_gradient.Run`."""
    del part  # The counts of random streams differ between parts.
    states = variables.batch_sync, variables.others
    model = nnx.merge(graph, params, *states, copy=True)
    model.train()
    values = loss_fn(model, batch, train=True)
    _, sync, others = nnx.state(model, wrt, _SYNC, ...)
    return values, _gradient.Variables(sync, others)
