"""A fully connected network with options, its training state and its evaluation.

Mini-batches are `image`, `[N, pixels]`, and `label`, `[N]`. The optimiser is plain SGD.
Its learning rate is part of the state, so that `recording.side_by_side` can train one
network per rate.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.framework import recording
from jaxbn import linen, training

Norm = Callable[..., nn.Module]  # It takes the arguments of linen.BatchNorm.

# Customary initial weights: Glorot and Bengio (2010), He et al. (2015).
KERNEL_INITS = {
    "sigmoid": nn.initializers.glorot_normal(),
    "tanh": nn.initializers.glorot_normal(),
    "relu": nn.initializers.he_normal(),
}


class FullyConnected(nn.Module):
    """A network of dense layers with normalisation, and a softmax at the end.

    Each of `hidden` gives a dense layer, a normalisation and a nonlinearity.

    Attributes:
      hidden: the units of each layer.
      activation: the name of a function of `flax.linen`.
      norm: makes the normalisation before each nonlinearity; None for no normalisation.
      kernel_init: initialises all weights; the default is customary for the activation.
      classes: the number of classes of the softmax.
      norm_after: True to normalise after each nonlinearity instead.
    """

    hidden: tuple[int, ...] = (100, 100, 100)
    activation: str = "sigmoid"
    norm: Norm | None = linen.BatchNorm
    kernel_init: Any = None
    classes: int = 10
    norm_after: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool,
        offsets: Sequence[jax.Array] = (),
        dropout: jax.Array | float | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns logits `[N, classes]`, and the input of each nonlinearity.

        Args:
          x: the images, `[N, pixels]`.
          train: True to normalise by the batch.
          offsets: arrays to add to the inputs of the nonlinearities; the gradient with
            respect to them, at zero, is that with respect to these inputs.
          dropout: the share of the outputs of the hidden layers that training leaves
            out; may be traced.
        """
        init = self.kernel_init or KERNEL_INITS[self.activation]
        inputs = []
        for i, units in enumerate(self.hidden):
            # The bias of the normalisation replaces that of the layer (Section 3.2).
            before = self.norm is not None and not self.norm_after
            u = nn.Dense(units, use_bias=not before, kernel_init=init)(x)
            if before:
                u = self.norm()(u, use_running_average=not train)
            if offsets:
                u = u + offsets[i]
            inputs.append(u)
            x = getattr(nn, self.activation)(u)
            if self.norm is not None and self.norm_after:
                x = self.norm()(x, use_running_average=not train)
            if dropout is not None and train:
                kept = jax.random.bernoulli(
                    self.make_rng("dropout"), 1 - dropout, x.shape
                )
                x = jnp.where(kept, x / (1 - dropout), 0)
        return nn.Dense(self.classes, kernel_init=init)(x), tuple(inputs)


def loss_fn(model: Any, batch: Mapping[str, jax.Array], train: bool):
    """Returns cross-entropy and accuracy per example.

    It is a loss function for `training.make_train_step`.
    """
    logits, _ = model(batch["image"].astype(jnp.float32), train=train)
    return cross_entropy(logits, batch["label"])


def cross_entropy(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Returns `loss` and `accuracy` per example, `[N]`."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {"loss": loss, "accuracy": logits.argmax(-1) == labels}


def init_state(
    model: nn.Module,
    pixels: int | tuple[int, ...],
    key: jax.Array,
    learning_rate: jax.Array | float,
) -> training.TrainState:
    """Returns the state before the first step.

    Args:
      model: a `FullyConnected`, or a network that is called in the same way.
      pixels: the number of pixels of an image, or its shape.
      key: the random key of the initial weights.
      learning_rate: the learning rate of plain SGD; may be traced.
    """
    shape = pixels if isinstance(pixels, tuple) else (pixels,)
    variables = model.init(key, jnp.zeros((2, *shape)), train=False)
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
    state = training.TrainState.create(model.apply, variables, tx)
    return with_rate(state, learning_rate)


def with_rate(
    state: training.TrainState, learning_rate: jax.Array | float
) -> training.TrainState:
    """Returns the state with another learning rate, which may be traced."""
    rate = {"learning_rate": jnp.asarray(learning_rate, jnp.float32)}
    return state.replace(opt_state=state.opt_state._replace(hyperparams=rate))


def scaled(
    state: training.TrainState, hidden: jax.Array | float, last: jax.Array | float
) -> training.TrainState:
    """Returns the state with its weights multiplied; the factors may be traced.

    Args:
      state: the state of a `FullyConnected`.
      hidden: the factor of the weights of the hidden layers.
      last: the factor of the weights before the softmax.
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
    """Returns `accuracy` and `loss` with the running statistics, and `finite`.

    Each has shape (). `finite` is False if a parameter or a logit is not finite: the
    network has diverged.
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


def run(
    name: str,
    model: nn.Module,
    pixels: int | tuple[int, ...],
    learning_rate: float,
    batch_size: int,
    record: Any = evaluate,
    **options: Any,
) -> recording.Run:
    """Returns the run of a network that is trained by plain SGD on its cross-entropy.

    Args:
      name: the name of the run.
      model: a `FullyConnected`, or a network that is called in the same way.
      pixels: the number of pixels of an image, or its shape.
      learning_rate: the learning rate of plain SGD.
      batch_size: the examples of a mini-batch.
      record: the function that takes the records, as in `recording.Run`.
      **options: other fields of the run.
    """
    return recording.Run(
        name,
        lambda key: init_state(model, pixels, key, learning_rate),
        recording.gradient_step(loss_fn),
        record,
        batch_size,
        **options,
    )
