"""What units of each layer do, and what gradient reaches them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from experiments.networks import fully_connected
from jaxbn import training

# A sigmoid beyond this has a slope below a fifth of its largest: its output is below
# .05 or above .95.
SATURATED = 2.944
# A gradient is gone if it is below a hundredth of the typical one of the last layer.
VANISHED = 0.01

_EXAMPLES = 500


def measure(
    model: fully_connected.FullyConnected,
    state: training.TrainState,
    held_out: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """By layer, `[layers]` each; as units see a mini-batch while they are trained.

    Returns:
      `saturated`: share of inputs of sigmoids where they are flat; of ReLU, where it
      lets nothing through. `dead`: share of units of which that holds for all examples.
      `gradient`: root mean square of the gradient by the inputs, over that of the last
      layer. `vanished`: share of gradients that are gone.
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
