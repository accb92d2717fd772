"""A fully connected network with options, and what studies train and record of it.

Mini-batches are `image`, `[N, pixels]`, and `label`, `[N]`. Plain SGD, whose learning
rate is part of the state: `recording.side_by_side` trains one network per rate.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxbn import linen, training

Norm = Callable[..., nn.Module]  # With the arguments of linen.BatchNorm.

# Customary initial weights: Glorot and Bengio (2010), He et al. (2015).
KERNEL_INITS = {
    "sigmoid": nn.initializers.glorot_normal(),
    "tanh": nn.initializers.glorot_normal(),
    "relu": nn.initializers.he_normal(),
}


class FullyConnected(nn.Module):
    """Dense, normalisation and nonlinearity for each of `hidden`; then a softmax.

    Attributes:
      hidden: units per layer.
      activation: a function of `flax.linen`, by name.
      norm: makes what stands before each nonlinearity; None for no normalisation.
      kernel_init: of all weights; default: what is customary for the activation.
      classes: of the softmax.
    """

    hidden: tuple[int, ...] = (100, 100, 100)
    activation: str = "sigmoid"
    norm: Norm | None = linen.BatchNorm
    kernel_init: Any = None
    classes: int = 10

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, offsets: Sequence[jax.Array] = ()
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Logits `[N, classes]`, and the inputs of the nonlinearities of each layer.

        Args:
          x: `[N, pixels]`.
          train: normalise by the batch.
          offsets: added to the inputs of the nonlinearities: the gradient by them, at
            zero, is the gradient by these inputs.
        """
        init = self.kernel_init or KERNEL_INITS[self.activation]
        inputs = []
        for i, units in enumerate(self.hidden):
            # The bias is subsumed by that of the normalisation (Section 3.2).
            u = nn.Dense(units, use_bias=self.norm is None, kernel_init=init)(x)
            if self.norm is not None:
                u = self.norm()(u, use_running_average=not train)
            if offsets:
                u = u + offsets[i]
            inputs.append(u)
            x = getattr(nn, self.activation)(u)
        return nn.Dense(self.classes, kernel_init=init)(x), tuple(inputs)


def loss_fn(model: Any, batch: Mapping[str, jax.Array], train: bool):
    """Cross-entropy and accuracy per example, for `training.make_train_step`."""
    logits, _ = model(batch["image"].astype(jnp.float32), train=train)
    labels = batch["label"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {"loss": loss, "accuracy": logits.argmax(-1) == labels}


def init_state(
    model: nn.Module, pixels: int, key: jax.Array, learning_rate: jax.Array | float
) -> training.TrainState:
    """The state before the first step.

    Args:
      model: `FullyConnected`, or one that is called as it is.
      pixels: of an image.
      key: of the initial weights.
      learning_rate: of plain SGD; may be traced.
    """
    variables = model.init(key, jnp.zeros((2, pixels)), train=False)
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
    state = training.TrainState.create(model.apply, variables, tx)
    rate = {"learning_rate": jnp.asarray(learning_rate, jnp.float32)}
    return state.replace(opt_state=state.opt_state._replace(hyperparams=rate))


def scaled(
    state: training.TrainState, hidden: jax.Array | float, last: jax.Array | float
) -> training.TrainState:
    """The state with its weights multiplied; the factors may be traced.

    Args:
      state: of `FullyConnected`.
      hidden: factor of the weights of the hidden layers.
      last: factor of those before the softmax.
    """
    names = [name for name in state.params if name.startswith("Dense_")]
    params = dict(state.params)
    for i in range(len(names)):
        factor = hidden if i + 1 < len(names) else last
        layer = params[f"Dense_{i}"]
        params[f"Dense_{i}"] = layer | {"kernel": layer["kernel"] * factor}
    return state.replace(params=params)


def evaluate(
    state: training.TrainState, held_out: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """`accuracy` and `loss` by the running statistics; whether all is `finite`.

    Each of shape (); a network with a parameter that is not finite has diverged.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    images = held_out["image"].astype(jnp.float32)
    logits, _ = state.apply_fn(variables, images, train=False)
    labels = held_out["label"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    leaves = jax.tree.leaves((state.params, jnp.sum(logits)))
    return {
        "accuracy": jnp.mean(logits.argmax(-1) == labels),
        "loss": jnp.mean(loss),
        "finite": jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])),
    }
