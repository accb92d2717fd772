"""A small convolutional network in Linen, its names in PyTorch and its evaluation."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxbn import linen

FEATURES = (16, 32, 32, 64)
STRIDES = (1, 2, 1, 2)
CLASSES = 10

# The modules of the Linen network, and their names in PyTorch's `state_dict`.
NAMES = {
    **{f"conv{i}": f"{3 * i}" for i in range(len(FEATURES))},
    **{f"norm{i}": f"{3 * i + 1}" for i in range(len(FEATURES))},
    "head": f"{3 * len(FEATURES) + 2}",
}


class Network(nn.Module):
    """Four convolutions with normalisation and ReLU, map means and a dense layer."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns logits `[N, 10]` of images `[N, H, W, 1]`."""
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False)
        for i, (features, stride) in enumerate(zip(FEATURES, STRIDES, strict=True)):
            x = conv(features, strides=stride, name=f"conv{i}")(x)
            norm = linen.BatchNorm(momentum=0.9, activation="relu", name=f"norm{i}")
            x = norm(x, use_running_average=not train)
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


def torch_network() -> Any:
    """Returns the network in PyTorch, which takes images `[N, 1, H, W]`."""
    from torch import nn as torch_nn

    layers, channels = [], 1
    for features, stride in zip(FEATURES, STRIDES, strict=True):
        layers += [
            torch_nn.Conv2d(channels, features, 3, stride, padding=1, bias=False),
            torch_nn.BatchNorm2d(features),
            torch_nn.ReLU(),
        ]
        channels = features
    pool = torch_nn.AdaptiveAvgPool2d(1), torch_nn.Flatten()
    return torch_nn.Sequential(*layers, *pool, torch_nn.Linear(channels, CLASSES))


NET = Network()


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
