"""The gradient of a batch that is taken in several parts, for want of memory."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbn import moments_collection
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
      ValueError: if the first axis of an array cannot be cut so.
    """
    parts = {name: _cut(name, array, micro_batches) for name, array in batch.items()}

    def one(index: jax.Array, part: gradient.Batch, collected: Any):
        key = jax.random.fold_in(state.key, index)  # Else all parts drop the same.
        return gradient.gradient_of(
            loss_fn, options, state.replace(key=key), part, params, collected
        )

    first = {name: array[0] for name, array in parts.items()}
    shapes = jax.eval_shape(one, jnp.zeros((), int), first, {})
    # The shapes of sums: of the gradient, of the metrics, of what was collected.
    total = moments_collection.zeros_like(shapes)

    def add(total: gradient.Gradient, part: tuple[jax.Array, gradient.Batch]):
        made = one(*part, total.batch_stats)
        count = made.metrics["loss"].count
        grads = jax.tree.map(
            lambda old, new: old + count.astype(new.dtype) * new,
            total.grads,
            made.grads,
        )
        metrics = {
            name: total.metrics[name] + metric for name, metric in made.metrics.items()
        }
        return gradient.Gradient(grads, metrics, made.batch_stats), None

    total, _ = jax.lax.scan(add, total, (jnp.arange(micro_batches), parts))
    count = jnp.maximum(total.metrics["loss"].count, 1)
    grads = jax.tree.map(lambda grad: grad / count.astype(grad.dtype), total.grads)
    moved = moments_collection.move_batch_stats(state.batch_stats, total.batch_stats)
    return gradient.Gradient(grads, total.metrics, moved)


def _cut(name: str, array: Any, parts: int) -> jax.Array:
    array = jnp.asarray(array)
    if array.ndim == 0 or array.shape[0] % parts:
        raise ValueError(
            f"`batch[{name!r}]` must have a first axis of a multiple of "
            f"{parts} examples, the number of `micro_batches`, got {array.shape}; pad "
            "it with `jaxbn.parallel.pad_batch`."
        )
    return array.reshape(parts, -1, *array.shape[1:])
