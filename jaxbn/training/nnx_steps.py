"""Train and eval steps for Flax NNX models, which a train step changes in place."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn import grouping, nnx_variables, sync_policies
from jaxbn.core import reduction
from jaxbn.training import gradient
from jaxbn.training import metrics as metrics_lib
from jaxbn.training.state import taken_by

Step = Callable[[Any, nnx.Optimizer, gradient.Batch], metrics_lib.Metrics]


def make_nnx_train_step(
    loss_fn: gradient.LossFn, *, axis_name: reduction.AxisName | None = None
) -> Step:
    """Returns a jitted function from model, `nnx.Optimizer` and batch to metrics.

    The function changes model and optimiser in place. It computes the gradient of the
    mean loss of the valid examples by the variables that the optimiser moves (its
    `wrt`). The attributes of the model do not change, because a copy is put in training
    mode.

    Args:
      loss_fn: called with the model in training mode, the batch and `train=True`. The
        loss function of `make_train_step` works if the model takes `train`.
      axis_name: axis or axes over which `nnx.pmap`, `nnx.shard_map` or `nnx.vmap` split
        the batch, as in `make_train_step`.

    Raises:
      ValueError, TypeError: when called, as for `make_train_step`.

    Example:
      >>> import optax
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

    @nnx.jit
    def train_step(
        model: Any, optimizer: nnx.Optimizer, batch: gradient.Batch
    ) -> metrics_lib.Metrics:
        if axis_name is not None:
            grouping.axis_size(axis_name)  # Raises if the name is not bound.
        graph, params, sync, rest = nnx.split(
            model, optimizer.wrt, nnx_variables.ANY_SYNC, ...
        )
        given = nnx_variables.sync_values(sync)

        def objective(params: Any, said: Any) -> tuple[jax.Array, tuple[Any, ...]]:
            states = sync_policies.with_said(given, said)
            synced = nnx_variables.with_sync_values(sync, states)
            copy = nnx.merge(graph, params, synced, rest, copy=True)
            copy.train()
            values = loss_fn(copy, batch, train=True)
            local = metrics_lib.reduce(values, batch.get("mask"))
            metrics = gradient.over_devices(local, axis_name)
            count = jnp.maximum(metrics["loss"].count, 1)
            loss = local["loss"].total / count.astype(local["loss"].total.dtype)
            moved = nnx.state(copy, nnx.Not(optimizer.wrt))
            return loss, (moved, metrics)

        def gradient_at(params: Any):
            params = gradient.varying(params, axis_name)
            (grads, said), (moved, metrics) = jax.grad(
                objective, argnums=(0, 1), has_aux=True
            )(params, sync_policies.said_of(given))
            said = gradient.after_all(grads, said)
            synced, moved = nnx.split_state(moved, nnx_variables.ANY_SYNC, ...)
            states = sync_policies.exchange(
                nnx_variables.sync_values(synced), said, axis_name=axis_name
            )
            moved = nnx.merge_state(
                nnx_variables.with_sync_values(synced, states), moved
            )
            return gradient.over_devices(grads, axis_name), moved, metrics

        def value_and_grads(params: Any) -> tuple[jax.Array, Any]:
            grads, _, metrics = gradient_at(params)
            return metrics["loss"].mean, grads

        grads, moved, metrics = gradient_at(params)
        extra_args: Mapping[str, Any] = {
            "value": metrics["loss"].mean,
            "grad": grads,
            "value_fn": gradient.with_gradient(value_and_grads),
        }
        optimizer.update(model, grads, **taken_by(optimizer.tx.update, extra_args))
        nnx.update(model, moved)
        return metrics

    return train_step


def make_nnx_eval_step(
    loss_fn: gradient.LossFn, *, axis_name: reduction.AxisName | None = None
) -> Callable[[Any, gradient.Batch], metrics_lib.Metrics]:
    """Returns a jitted function from model and batch to metrics.

    The function does not change the model.

    Args:
      loss_fn: called with a copy of the model in evaluation mode, the batch and
        `train=False`.
      axis_name: as in `make_nnx_train_step`.

    Raises:
      ValueError, TypeError: when called, as for `make_eval_step`.
    """

    @nnx.jit
    def eval_step(model: Any, batch: gradient.Batch) -> metrics_lib.Metrics:
        copy = nnx.clone(model)
        copy.eval()
        metrics = metrics_lib.reduce(
            loss_fn(copy, batch, train=False), batch.get("mask")
        )
        return gradient.over_devices(metrics, axis_name)

    return eval_step
