"""Scaling of the loss, and skipping of a step whose gradient is not finite.

A loss with too large a scale overflows only in the backward pass. The batch statistics
of such a step look valid, so code that skips the step must also restore the old
statistics. Neither optax nor Flax's example does this.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn._core import reduction
from jaxbn.training._state import as_array

Tree = TypeVar("Tree")

# The field of a Linen state, and the attribute of an NNX optimiser, with the scale.
NAME = "dynamic_scale"


class LossScale(nnx.Variable):
    """The variable that holds the loss scale of an NNX training.

    Assign it to the attribute `dynamic_scale` of the optimiser, and the steps of
    `make_nnx_train_step` scale the loss.

    Args:
      value: a `flax.training.dynamic_scale.DynamicScale`. Its numbers become arrays, so
        that the second step is not compiled anew.

    Example:
      >>> import optax
      >>> from flax.training.dynamic_scale import DynamicScale
      >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
      >>> optimizer.dynamic_scale = LossScale(DynamicScale(growth_interval=500))
      >>> optimizer.dynamic_scale.get_value().scale
      Array(65536., dtype=float32)
    """

    def __init__(self, value: Any, **metadata: Any):
        super().__init__(jax.tree.map(as_array, value), **metadata)


def all_finite(tree: Any, *, axis_name: reduction.AxisName | None = None) -> jax.Array:
    """Checks whether every number in a tree is finite.

    Args:
      tree: arrays of any shapes and dtypes, such as gradients.
      axis_name: axis or axes of pmap, shard_map or vmap. All devices along them must
        have finite numbers. Leave it out for gradients that are already summed over the
        devices.

    Returns:
      A boolean scalar.

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


def scaled(loss: jax.Array, scale: Any) -> jax.Array:
    """Multiplies the loss by the scale; None means 1."""
    return loss if scale is None else loss * jnp.asarray(scale, loss.dtype)


def unscaled(grads: Any, scale: Any) -> Any:
    """Divides the gradient by the scale; None means 1."""
    if scale is None:
        return grads

    def divide(grad: jax.Array) -> jax.Array:
        wide = grad.astype(reduction.reduction_dtype(grad.dtype))
        return (wide / scale).astype(grad.dtype)

    return jax.tree.map(divide, grads)


def after_step(dynamic_scale: Any, grads: Any) -> Any:
    """Returns the `DynamicScale` for the next step.

    Args:
      dynamic_scale: the scale of this step.
      grads: the gradient of this step; it decides whether the scale grows or shrinks.
    """
    # Flax updates its scale only by a gradient that it computes itself. Here it
    # computes the gradient of a function of one number.
    number = jnp.where(all_finite(grads), 1.0, jnp.nan)
    return dynamic_scale.value_and_grad(lambda x: number * x)(1.0).dynamic_scale
