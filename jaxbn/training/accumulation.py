"""The gradient of a batch that is computed in several parts, to save memory."""

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
    """Returns the gradient of the mean loss of a batch, computed part by part.

    Each part is normalised by its own statistics. The running statistics move once, by
    the moments of all parts together. The state of other modules moves with every part.

    Args:
      loss_fn: the loss function, as in `make_train_step`.
      options: the options of the step.
      micro_batches: the number of parts, which have equal size.
      state: parameters, running statistics and key.
      batch: arrays whose first axis is cut into the parts.
      params: parameters to use instead of those of the state.

    Raises:
      ValueError: if the first axis of an array cannot be cut into equal parts, or if a
        policy remembers earlier steps.
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

    def one(
        index: jax.Array, part: gradient.Batch, batch_stats: Any, collected: Any
    ) -> tuple[gradient.Gradient, Any]:
        key = jax.random.fold_in(state.key, index)  # Dropout differs between parts.
        here = state.replace(key=key, batch_stats=batch_stats)
        return gradient.gradient_and_moments(
            loss_fn, options, here, part, params, collected
        )

    first = jax.tree.map(lambda array: array[0], parts)
    collected = moments_collection.init_batch_moments(state.batch_stats)
    shapes, collected_shapes = jax.eval_shape(
        one, jnp.zeros((), int), first, state.batch_stats, collected
    )
    collected = moments_collection.before_the_first_pass(
        state.batch_stats, collected_shapes
    )
    total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total = total._replace(
        # A sum in half precision would stop growing.
        grads=jax.tree.map(reduction.widened, total.grads),
        batch_stats=_as_after_a_pass(
            state.batch_stats, shapes.batch_stats, collected_shapes
        ),
    )
    # In a checked shard_map the carry must vary over the devices as the result does.
    total, collected = jax.tree.map(
        reduction.varying_as, (total, collected), (shapes, collected_shapes)
    )

    def add(
        before: tuple[gradient.Gradient, Any], part: tuple[jax.Array, gradient.Batch]
    ) -> tuple[tuple[gradient.Gradient, Any], None]:
        total, collected = before
        made, collected = one(*part, total.batch_stats, collected)
        metrics = {
            name: total.metrics[name] + metric for name, metric in made.metrics.items()
        }
        # This keeps the average so far. A sum divided at the end may overflow.
        count = jnp.maximum(metrics["loss"].count, 1)
        share = made.metrics["loss"].count / count
        grads = jax.tree.map(
            lambda old, new: old + share.astype(old.dtype) * (new - old),
            total.grads,
            made.grads,
        )
        return (made._replace(grads=grads, metrics=metrics), collected), None

    xs = (jnp.arange(micro_batches), parts)
    (total, collected), _ = jax.lax.scan(add, (total, collected), xs)
    grads = jax.tree.map(
        lambda grad, like: grad.astype(like.dtype), total.grads, shapes.grads
    )
    moved = moments_collection.move_batch_stats(total.batch_stats, collected)
    return gradient.Gradient(grads, total.metrics, moved, {})


def _as_after_a_pass(batch_stats: Any, shapes: Any, collected_shapes: Any) -> Any:
    """Returns the statistics in the containers and dtypes that the step gives them.

    `lax.scan` carries them from pass to pass. Half precision becomes float32 here, as
    it would at the end of the step.

    Args:
      batch_stats: the collection before the step.
      shapes: shapes and dtypes of the collection after a pass.
      collected_shapes: shapes and dtypes of the collection `batch_moments`.
    """
    after = jax.eval_shape(
        moments_collection.move_batch_stats, shapes, collected_shapes
    )
    leaves = jax.tree.leaves(batch_stats)
    given = jax.tree.unflatten(jax.tree.structure(after), leaves)
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), given, after)


def _cut(name: str, array: Any, parts: int) -> jax.Array:
    """Cuts an array into parts of every k-th example.

    Each device then has examples of every part.
    """
    array = jnp.asarray(array)
    if array.ndim == 0 or array.shape[0] % parts:
        raise ValueError(
            f"`batch{name}` must have a first axis of a multiple of {parts} examples, "
            f"the number of `micro_batches`, got {array.shape}; pad it with "
            "`jaxbn.parallel.pad_batch`."
        )
    split = array.reshape(array.shape[0] // parts, parts, *array.shape[1:])
    return jnp.swapaxes(split, 0, 1)
