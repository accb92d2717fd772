"""The network of the paper's Section 4.1 and its training, for several studies.

The network has three hidden layers of sigmoid units, Batch Normalization before the
nonlinearity and a 10-way softmax. It is trained by plain mini-batch SGD. Everything
that varies between seeds is traced, so that runs can train side by side under `vmap`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from experiments.networks import fully_connected
from jaxbn import linen, training

NETWORKS = ("with_bn", "without_bn")
_PIXELS = 784  # The pixels of an image in the paper.


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters of the network; the paper gives some of them."""

    hidden: tuple[int, ...] = (100, 100, 100)
    """The number of units of each hidden layer (paper: three layers of 100)."""
    batch_size: int = 60
    """The number of examples in a mini-batch (paper: 60)."""
    learning_rate: float = 0.15
    """The learning rate of plain SGD, for both networks (not in the paper)."""
    init_std: float = 0.0435
    """The standard deviation of the initial weights (not in the paper)."""
    init: Literal["normal", "uniform"] = "normal"
    """The distribution of the initial weights (paper: Gaussian)."""
    init_per_layer: bool = False
    """Scale `init_std` by the root of 784 over the inputs of a layer, so that the
    inputs of all sigmoids have the same variance."""
    sgd_momentum: float = 0.0
    """The momentum of SGD (not in the paper)."""
    decay: float = 0.1
    """The share of the learning rate that is left at the end of its exponential decay
    (not in the paper)."""
    replacement: bool = False
    """Draw mini-batches with replacement instead of epoch by epoch."""
    bn_momentum: float = 0.99
    """The weight of the old running statistics in an update."""
    exact_population: bool = False
    """Evaluate with the statistics of one batch of 10,000 training images."""
    ink: int = 64
    """The least brightness, from 0 to 255, that becomes 1 in binary images (not in the
    paper)."""


def make_model(hp: Hyperparameters, network: str) -> fully_connected.FullyConnected:
    """Returns the network with or without Batch Normalization."""
    norm = functools.partial(linen.BatchNorm, momentum=hp.bn_momentum)
    return fully_connected.FullyConnected(
        hp.hidden,
        norm=norm if network == "with_bn" else None,
        kernel_init=functools.partial(_init_kernel, hp),
    )


def _init_kernel(hp: Hyperparameters, key, shape, dtype=jnp.float32) -> jax.Array:
    inputs, outputs = shape
    std = hp.init_std
    if hp.init_per_layer:
        std *= math.sqrt(_PIXELS / inputs)
    if hp.init == "normal":
        return std * jax.random.normal(key, (inputs, outputs), dtype)
    limit = math.sqrt(3) * std
    return jax.random.uniform(key, (inputs, outputs), dtype, -limit, limit)


def init_states(
    hp: Hyperparameters, key: jax.Array, pixels: int, steps: int = 1
) -> dict[str, training.TrainState]:
    """Returns the states of both networks, with the same initial weights.

    The learning rate decays over `steps` steps.
    """
    states = {}
    for network in NETWORKS:
        model = make_model(hp, network)
        variables = model.init(key, jnp.zeros((2, pixels)), train=False)
        rate = hp.learning_rate
        if hp.decay != 1:
            rate = optax.exponential_decay(rate, steps, hp.decay)
        tx = optax.sgd(rate, hp.sgd_momentum or None)
        states[network] = training.TrainState.create(model.apply, variables, tx)
    return states


def accuracy(
    hp: Hyperparameters,
    network: str,
    state: training.TrainState,
    test: Mapping[str, jax.Array],
    population: jax.Array,
) -> jax.Array:
    """Returns the test accuracy, of shape ().

    It uses the running statistics or, with `hp.exact_population`, the statistics of one
    batch of all images in `population`.
    """
    batch_stats = state.batch_stats
    if hp.exact_population:
        forget = dataclasses.replace(hp, bn_momentum=0.0)
        _, batch_stats = _apply(forget, network, state, population, train=True)
    state = state.replace(batch_stats=batch_stats)
    (logits, _), _ = _apply(hp, network, state, test["image"], train=False)
    return jnp.mean(logits.argmax(-1) == test["label"])


def input_percentiles(
    hp: Hyperparameters,
    network: str,
    state: training.TrainState,
    images: jax.Array,
    percentiles: Sequence[float],
) -> jax.Array:
    """Returns percentiles of the inputs of the last sigmoids, `[percentiles, units]`.

    The network normalises by the batch of `images`, as in training.
    """
    (_, inputs), _ = _apply(hp, network, state, images, train=True)
    return jnp.percentile(inputs[-1], jnp.array(percentiles, jnp.float32), axis=0)


def _apply(hp, network, state, images, *, train):
    """Returns the outputs of the network and its statistics after the call."""
    variables = {"params": state.params}
    if state.batch_stats:
        variables["batch_stats"] = state.batch_stats
    outputs, updates = make_model(hp, network).apply(
        variables, images.astype(jnp.float32), train=train, mutable=["batch_stats"]
    )
    return outputs, updates.get("batch_stats", {})
