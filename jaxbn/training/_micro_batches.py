"""The gradient of a batch that is computed in several parts, to save memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._core import reduction
from jaxbn.training import _gradient

TakeGradient = Callable[[_gradient.Variables, _gradient.Batch, Any], _gradient.Result]


def check(micro_batches: int) -> None:
    """Raises a `ValueError` if the number of parts is below 1."""
    if micro_batches < 1:
        raise ValueError(f"`micro_batches` must be at least 1, got {micro_batches}.")


def gradient_in_parts(
    take_gradient: TakeGradient,
    before_the_first: Callable[[_gradient.Variables], _gradient.Variables],
    micro_batches: int,
    variables: _gradient.Variables,
    batch: _gradient.Batch,
) -> _gradient.Result:
    """Returns the gradient of the mean loss of a batch, computed part by part.

    Each part is normalised by its own statistics. Each part updates the variables, so
    the layers must collect moments instead of updating their statistics. A single part
    is the whole batch, and its layers update their statistics.

    Args:
      take_gradient: computes the gradient from the variables, a part and its index.
      before_the_first: takes shapes and dtypes of the variables after a part, and
        returns the variables before the first one, in the same structure.
      micro_batches: the number of parts, which have equal size.
      variables: the variables before the step. Several parts use only their shapes.
      batch: arrays whose first axis is cut into the parts.

    Raises:
      ValueError: if the first axis of an array cannot be cut into equal parts, or if a
        policy has a state.
    """
    if micro_batches == 1:
        return take_gradient(variables, batch, None)
    if variables.batch_sync:
        raise ValueError(
            "`micro_batches` must be 1 where `sync=` of a layer has a state, got "
            f"{micro_batches}; a part of a batch is not a step."
        )
    parts = jax.tree_util.tree_map_with_path(
        lambda path, array: _cut(jax.tree_util.keystr(path), array, micro_batches),
        dict(batch),
    )
    indices = jnp.arange(micro_batches)
    first = jax.tree.map(lambda array: array[0], parts)
    shapes = jax.eval_shape(take_gradient, variables, first, indices[0])

    def add(
        total: _gradient.Result, part: tuple[jax.Array, _gradient.Batch]
    ) -> tuple[_gradient.Result, None]:
        index, batch = part
        new = take_gradient(total.variables, batch, index)
        metrics = {
            name: total.metrics[name] + new.metrics[name] for name in new.metrics
        }
        # This keeps an average, because a sum that is divided at the end may overflow.
        count = jnp.maximum(metrics["loss"].count, 1)
        share = new.metrics["loss"].count / count
        grads = jax.tree.map(
            lambda old, new: old + share.astype(old.dtype) * (new - old),
            total.grads,
            new.grads,
        )
        return _gradient.Result(grads, metrics, new.variables), None

    total = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes[:2])
    grads, metrics = total
    # A sum in half precision would stop growing.
    grads = jax.tree.map(reduction.widened, grads)
    variables = jax.tree.map(
        _as_dtype, before_the_first(shapes.variables), shapes.variables
    )
    # In a checked shard_map the carry must vary over the devices as the result does.
    total = jax.tree.map(
        reduction.varying_as, _gradient.Result(grads, metrics, variables), shapes
    )
    total, _ = jax.lax.scan(add, total, (indices, parts))
    return total._replace(grads=jax.tree.map(_as_dtype, total.grads, shapes.grads))


def _as_dtype(array: Any, like: Any) -> jax.Array:
    array = jnp.asarray(array)
    return array if array.dtype == like.dtype else array.astype(like.dtype)


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
