"""Measures how the loss and its gradient change as parameters move.

`loss` is a function of the parameters alone. `layers` has the names of the parts of the
parameter tree, in the order in which they are computed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Mapping[str, Any]
Loss = Callable[[Any], jax.Array]


def along_gradient(loss: Loss, params: Any, rates: jax.Array) -> dict[str, jax.Array]:
    """Measures loss and gradient after steps of several lengths along the gradient.

    Args:
      loss: a function of the parameters.
      params: the parameters from which the steps start.
      rates: the learning rates of the steps, `[steps]`.

    Returns:
      Four values of shape (). `loss_range` is the largest loss of the steps minus the
      smallest. `gradient_change` is the largest Euclidean distance of the gradient from
      that at the start. `relative_change` is that distance divided by the norm of the
      gradient at the start. `smoothness` is the largest ratio of the distance to the
      length of the step (effective beta-smoothness).

    References:
      Santurkar et al., arXiv:1805.11604, Section 3.
    """
    start = jax.grad(loss)(params)
    norm = optax.tree.norm(start)

    def step(rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(_moved(params, start, rate))
        return value, optax.tree.norm(optax.tree.sub(gradient, start))

    values, changes = jax.lax.map(step, rates)
    return {
        "loss_range": jnp.max(values) - jnp.min(values),
        "gradient_change": jnp.max(changes),
        "relative_change": jnp.max(changes) / norm,
        "smoothness": jnp.max(changes / (rates * norm)),
    }


def internal_shift(
    loss: Loss,
    params: Params,
    rate: float,
    layers: Sequence[Sequence[str]],
    weights: Sequence[str],
) -> dict[str, jax.Array]:
    """Measures the change of each layer's gradient by a step of the layers before it.

    The gradient of a layer before a step is compared with its gradient after a step of
    only the layers before it.

    Args:
      loss: a function of the parameters.
      params: the parameters by part; the weights are `params[name]["kernel"]`.
      rate: the learning rate of the step.
      layers: the names of the parts of each layer.
      weights: for each layer the name of the part with its weights.

    Returns:
      Two arrays `[layers]`. `distance` is the Euclidean distance of the two gradients,
      divided by the norm of the first. `cosine` is the cosine of their angle.

    References:
      Santurkar et al., arXiv:1805.11604, Definition 2.1.
    """
    gradient = jax.grad(loss)(params)
    moved, mixed, rows = _moved(params, gradient, rate), dict(params), []
    for names, name in zip(layers, weights, strict=True):
        before = gradient[name]["kernel"]
        after = jax.grad(loss)(mixed)[name]["kernel"]
        norms = [jnp.linalg.norm(each) for each in (before, after)]
        rows.append(
            {
                "distance": jnp.linalg.norm(after - before) / norms[0],
                "cosine": jnp.sum(before * after) / (norms[0] * norms[1]),
            }
        )
        mixed |= {each: moved[each] for each in names}
    return {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}


def _moved(params: Any, gradient: Any, rate: jax.Array | float) -> Any:
    return jax.tree.map(lambda p, g: p - rate * g, params, gradient)
