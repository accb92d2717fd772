"""The gradient of one batch, for both Flax APIs.

A function `run` hides whether a model is a Linen or an NNX model. It is a pure function
of parameters and other variables.

Policies that exchange messages, such as `jaxbn.sync.Stale`, keep them in their states.
The loss is differentiated with respect to these messages too, so that a backward pass
can send some. After the step one exchange delivers all messages, and its result is the
new state.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxbn import sync
from jaxbn._core import groups, reduction
from jaxbn.training import _loss_scale, _metrics

Batch = Mapping[str, Any]


class LossFn(Protocol):
    """A function that returns values per example; one of them is named "loss".

    The steps call it as `loss_fn(model, batch, train=...)`. It returns a mapping of
    names to arrays with one value per example, of the shape of the batch's `mask` if
    there is one. The gradient is that of the mean of "loss".

    Example:
      >>> def loss_fn(model, batch, train):
      ...     error = model(batch["x"], train=train) - batch["y"]
      ...     return {"loss": error**2, "error": jnp.abs(error)}
    """

    def __call__(
        self, model: Any, batch: Batch, train: bool
    ) -> Mapping[str, jax.Array]: ...


class Variables(NamedTuple):
    """The values that a model reads and writes besides its parameters."""

    batch_sync: Any  # The states of policies, as mappings.
    others: Any  # Collections of a Linen model, or the state of an NNX model.


class Run(Protocol):
    """A pass of a model in training mode.

    It returns what the loss function returned, and the new variables. `part` is the
    index of the part of the batch, or None if the batch is whole.
    """

    def __call__(
        self, params: Any, variables: Variables, batch: Batch, part: jax.Array | None
    ) -> tuple[Mapping[str, jax.Array], Variables]: ...


class Result(NamedTuple):
    """Gradient, metrics and new variables of one batch, or of one part of it."""

    grads: Any  # The gradient of the mean loss, for every parameter.
    metrics: _metrics.Metrics
    variables: Variables


def gradient_of(
    run: Run,
    params: Any,
    axis_name: reduction.AxisName | None,
    scale: Any,
    variables: Variables,
    batch: Batch,
    part: jax.Array | None,
) -> Result:
    """Returns the gradient of a batch, or of a part of it.

    Args:
      run: runs the model.
      params: the parameters.
      axis_name: as in `make_train_step`.
      scale: the scale of the loss in the backward pass, or None. The returned gradient
        is unscaled.
      variables: the variables before the pass.
      batch: the batch.
      part: the index of the part that the batch is, or None.

    Raises:
      ValueError: if `axis_name` is not bound.
    """
    if axis_name is not None:
        groups.axis_size(axis_name)  # Raises if the name is not bound.
    # The states hold sums of the unscaled loss.
    synced = _with_scale(variables.batch_sync, scale)

    def objective(params: Any, messages: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        sending = sync.with_messages(synced, messages)
        given = variables._replace(batch_sync=sending)
        values, new = run(params, given, batch, part)
        local = _metrics.reduce(values, batch.get("mask"))
        metrics = over_devices(local, axis_name)
        count = jnp.maximum(metrics["loss"].count, 1)
        loss = local["loss"].total / count.astype(local["loss"].total.dtype)
        return _loss_scale.scaled(loss, scale), (new, metrics)

    (grads, cotangents), (new, metrics) = jax.grad(
        objective, argnums=(0, 1), has_aux=True
    )(_varying(params, axis_name), sync.messages_of(synced))
    cotangents = _after_all(grads, cotangents)
    grads = _loss_scale.unscaled(over_devices(grads, axis_name), scale)
    synced = sync.exchange(new.batch_sync, cotangents, axis_name=axis_name)
    synced = _with_scale(synced, None if scale is None else 1 / scale)
    return Result(grads, metrics, new._replace(batch_sync=synced))


def over_devices(tree: Any, axis_name: reduction.AxisName | None) -> Any:
    """Sums a tree over the devices of a mapped axis."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _with_scale(batch_sync: Any, factor: Any) -> Any:
    """Multiplies the sums of backward passes in the states; None means 1."""
    if factor is None:
        return batch_sync
    return sync.scale_messages(batch_sync, factor)


def _after_all(grads: Any, messages: Any) -> Any:
    """Returns the messages unchanged, but only after all gradients are computed.

    Otherwise the GPU compiler fuses the backward pass of a layer with the exchange of
    messages into one kernel, and that layer waits for the exchange.
    """
    if not messages:
        return messages
    return jax.lax.optimization_barrier((messages, grads))[0]


def _varying(params: Any, axis_name: reduction.AxisName | None) -> Any:
    """Marks parameters as varying, so that each device has a gradient of its own.

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
