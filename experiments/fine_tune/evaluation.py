"""The network with given variables on given images."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from experiments.fine_tune import network

NET = network.Network()


def evaluating(model: nn.Module, x: jax.Array) -> jax.Array:
    return model(x, train=False)


def training_mode(model: nn.Module, x: jax.Array) -> jax.Array:
    return model(x, train=True)


@jax.jit
def logits(variables: Any, x: jax.Array) -> jax.Array:
    return NET.apply(variables, x, train=False)


def evaluate(variables: Any, images: np.ndarray) -> np.ndarray:
    """Logits `[N, 10]`."""
    parts = np.array_split(images, max(1, len(images) // 1000))
    return np.concatenate([logits(variables, part) for part in parts])


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.argmax(logits, -1) == labels))
