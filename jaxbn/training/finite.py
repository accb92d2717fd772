"""Functions that skip a step whose gradient is not finite.

A loss that was scaled too far overflows only in the backward pass. The batch statistics
of such a step look valid, so code that skips the step must also restore the old
statistics. Neither optax nor Flax's example does this.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxbn import sync_policies
from jaxbn.core import reduction
from jaxbn.training.state import TrainState

Tree = TypeVar("Tree")
_FIELD = "dynamic_scale"


def all_finite(tree: Any, *, axis_name: reduction.AxisName | None = None) -> jax.Array:
    """Checks whether every number in a tree is finite; returns a boolean scalar.

    Args:
      tree: arrays of any dtype, such as gradients.
      axis_name: axis or axes of pmap, shard_map or vmap. All devices along them must
        have finite numbers. Leave it out for gradients that are already summed over the
        devices.

    Example:
      >>> all_finite({"a": jnp.ones(2), "b": jnp.array([0.0, jnp.nan])})
      Array(False, dtype=bool)
    """
    found = jnp.array(True)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            found &= jnp.all(jnp.isfinite(leaf))
    if axis_name is None:
        return found
    return jax.lax.psum(jnp.where(found, 0, 1), axis_name) == 0


def where_finite(
    grads: Any, new: Tree, old: Tree, *, axis_name: reduction.AxisName | None = None
) -> Tree:
    """Returns `new` if every gradient is finite, else `old`.

    Use it for everything that a step changes: parameters, state of the optimiser, batch
    statistics.

    Args:
      grads: a tree of arrays.
      new: a tree of arrays or keys, such as a whole `TrainState` or states of NNX.
      old: a tree of the same structure, shapes and dtypes.
      axis_name: as in `all_finite`.

    Returns:
      One of the two trees, bit for bit.

    Example:
      >>> new, old = {"mean": jnp.ones(2)}, {"mean": jnp.zeros(2)}
      >>> where_finite(jnp.array([1.0, jnp.inf]), new, old)
      {'mean': Array([0., 0.], dtype=float32)}
    """
    use_new = all_finite(grads, axis_name=axis_name)
    return jax.tree.map(lambda new, old: jnp.where(use_new, new, old), new, old)


def scaled(state: TrainState, loss: jax.Array) -> jax.Array:
    """Multiplies the loss by the scale of the state, if it has one."""
    scale = getattr(state, _FIELD, None)
    return loss if scale is None else loss * jnp.asarray(scale.scale, loss.dtype)


def unscaled(state: TrainState, grads: Any) -> Any:
    """Divides the gradient by the scale of the state, if it has one."""
    scale = getattr(state, _FIELD, None)
    if scale is None:
        return grads

    def divide(grad: jax.Array) -> jax.Array:
        wide = grad.astype(reduction.reduction_dtype(grad.dtype))
        return (wide / scale.scale).astype(grad.dtype)

    return jax.tree.map(divide, grads)


def scaled_messages(state: TrainState) -> Any:
    """Returns the policies' states with sums of backward passes scaled as the loss."""
    scale = getattr(state, _FIELD, None)
    if scale is None:
        return state.batch_sync
    return sync_policies.scaled_messages(state.batch_sync, scale.scale)


def unscaled_messages(state: TrainState, batch_sync: Any) -> Any:
    """Divides the sums of backward passes in the policies' states by the scale."""
    scale = getattr(state, _FIELD, None)
    if scale is None:
        return batch_sync
    return sync_policies.scaled_messages(batch_sync, 1 / scale.scale)


def after_scaled_step(grads: Any, new: TrainState, old: TrainState) -> TrainState:
    """Returns the new state, or the old one if a scaled gradient is not finite.

    The scale and the number of steps move in both cases. The result is `new` itself if
    the state has no scale.
    """
    scale: Any = getattr(old, _FIELD, None)
    if scale is None:
        return new
    # Flax moves its scale only by a gradient that it computes itself. Here that is the
    # gradient of a function of one number.
    number = jnp.where(all_finite(grads), 1.0, jnp.nan)
    moved = scale.value_and_grad(lambda x: number * x)(1.0).dynamic_scale
    kept = where_finite(grads, new, old)
    return kept.replace(step=new.step, **{_FIELD: moved})
