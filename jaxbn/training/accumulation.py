"""The gradient of a batch that is taken in several parts, for want of memory."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbn import moments_collection
from jaxbn.core import reduction
from jaxbn.training import gradient
from jaxbn.training.state import TrainState


def accumulated_gradient_of(
    loss_fn: gradient.LossFn,
    options: gradient.Options,
    micro_batches: int,
    state: TrainState,
    batch: gradient.Batch,
    params: Any = None,
) -> gradient.Gradient:
    """The gradient of the mean loss of all parts of a batch, one after the other.

    Each part is normalised by its own statistics; the running ones move once, by the
    moments of all parts together.

    Args:
      loss_fn: as `make_train_step`.
      options: of the step.
      micro_batches: the number of parts, of equal size.
      state: parameters, running statistics and key.
      batch: arrays whose first axis is cut into the parts.
      params: others than those of the state.

    Raises:
      ValueError: if the first axis of an array cannot be cut so, or policies remember
        earlier steps.
    """
    if state.batch_sync:
        raise ValueError(
            "`micro_batches` must be 1 where `sync=` of a layer remembers earlier "
            f"steps, got {micro_batches}; a part of a batch is no step."
        )
    parts = jax.tree_util.tree_map_with_path(
        lambda path, array: _cut(jax.tree_util.keystr(path), array, micro_batches),
        dict(batch),
    )

    def one(index: jax.Array, part: gradient.Batch, collected: Any):
        key = jax.random.fold_in(state.key, index)  # Else all parts drop the same.
        return gradient.gradient_of(
            loss_fn, options, state.replace(key=key), part, params, collected
        )

    first = jax.tree.map(lambda array: array[0], parts)
    shapes = jax.eval_shape(one, jnp.zeros((), int), first, {})
    # The shapes of sums: of the gradient, of the metrics, of what was collected.
    total = moments_collection.zeros_like(shapes)
    # In float32: of half precision the average would stop moving.
    total = total._replace(grads=jax.tree.map(_widened, total.grads))

    def add(total: gradient.Gradient, part: tuple[jax.Array, gradient.Batch]):
        made = one(*part, total.batch_stats)
        metrics = {
            name: total.metrics[name] + metric for name, metric in made.metrics.items()
        }
        # The average so far, and no sum that is divided at the end, which may overflow.
        count = jnp.maximum(metrics["loss"].count, 1)
        share = made.metrics["loss"].count / count
        grads = jax.tree.map(
            lambda old, new: old + share.astype(old.dtype) * (new - old),
            total.grads,
            made.grads,
        )
        return gradient.Gradient(grads, metrics, made.batch_stats, {}), None

    total, _ = jax.lax.scan(add, total, (jnp.arange(micro_batches), parts))
    grads = jax.tree.map(
        lambda grad, like: grad.astype(like.dtype), total.grads, shapes.grads
    )
    moved = moments_collection.move_batch_stats(state.batch_stats, total.batch_stats)
    return gradient.Gradient(grads, total.metrics, moved, {})


def _widened(grad: jax.Array) -> jax.Array:
    return grad.astype(reduction.reduction_dtype(grad.dtype))


def _cut(name: str, array: Any, parts: int) -> jax.Array:
    """Every k-th example makes a part, so that each device has some of every part."""
    array = jnp.asarray(array)
    if array.ndim == 0 or array.shape[0] % parts:
        raise ValueError(
            f"`batch{name}` must have a first axis of a multiple of {parts} examples, "
            f"the number of `micro_batches`, got {array.shape}; pad it with "
            "`jaxbn.parallel.pad_batch`."
        )
    split = array.reshape(array.shape[0] // parts, parts, *array.shape[1:])
    return jnp.swapaxes(split, 0, 1)
