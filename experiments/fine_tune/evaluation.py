"""Evaluates the network with given variables on given images."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from experiments.fine_tune import network

NET = network.Network()


def evaluating(model: nn.Module, x: jax.Array) -> jax.Array:
    """Returns logits `[N, 10]` with the running statistics, for `jaxbn.fold`."""
    return model(x, train=False)


def training_mode(model: nn.Module, x: jax.Array) -> jax.Array:
    """Returns logits `[N, 10]` with the statistics of the batch.

    It is used by `recalibrate` and `diagnose`.
    """
    return model(x, train=True)


@jax.jit
def logits(variables: Any, x: jax.Array) -> jax.Array:
    """Returns logits `[N, 10]` of one batch with the running statistics."""
    return NET.apply(variables, x, train=False)


def evaluate(variables: Any, images: np.ndarray) -> np.ndarray:
    """Returns logits `[N, 10]` of many images, computed in parts."""
    parts = np.array_split(images, max(1, len(images) // 1000))
    return np.concatenate([logits(variables, part) for part in parts])


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of the labels that have the highest logit."""
    return float(np.mean(np.argmax(logits, -1) == labels))
