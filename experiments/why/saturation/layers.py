"""Measures the units of each layer and the gradient that reaches them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from experiments.networks import fully_connected
from jaxbn import training

# For inputs beyond this, a sigmoid has less than a fifth of its largest slope. Its
# output is below .05 or above .95.
SATURATED = 2.944
# A gradient has vanished if it is below this part of the last layer's typical one.
VANISHED = 0.01

_EXAMPLES = 500


def measure(
    model: fully_connected.FullyConnected,
    state: training.TrainState,
    held_out: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """Measures each layer on a mini-batch, which normalises as in training.

    Returns:
      Four arrays `[layers]`. `saturated` is the share of inputs at which a sigmoid is
      flat or a ReLU is 0. `dead` is the share of units that are saturated for all
      examples. `gradient` is the root mean square of the gradient with respect to the
      inputs, divided by that of the last layer. `vanished` is the share of gradients
      that have vanished.
    """
    images = held_out["image"][:_EXAMPLES]
    labels = held_out["label"][:_EXAMPLES]
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    def loss(offsets: list[jax.Array]):
        (logits, inputs), _ = model.apply(
            variables, images, train=True, offsets=offsets, mutable=["batch_stats"]
        )
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return entropy.sum(), inputs

    zeros = [jnp.zeros((len(images), units)) for units in model.hidden]
    gradients, inputs = jax.grad(loss, has_aux=True)(zeros)
    idle = [_idle(model.activation, u) for u in inputs]
    sizes = jnp.stack([jnp.sqrt(jnp.mean(jnp.square(g))) for g in gradients])
    gone = [jnp.abs(g) < VANISHED * sizes[-1] for g in gradients]
    return {
        "saturated": jnp.stack([jnp.mean(each) for each in idle]),
        "dead": jnp.stack([jnp.mean(each.all(0)) for each in idle]),
        "gradient": sizes / sizes[-1],
        "vanished": jnp.stack([jnp.mean(each) for each in gone]),
    }


def _idle(activation: str, u: jax.Array) -> jax.Array:
    return u <= 0 if activation == "relu" else jnp.abs(u) > SATURATED
