"""A small convolutional network, and the six of the ensemble that are made of it."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.networks import models
from jaxbn import linen

CLASSES = 10


class Member(NamedTuple):
    """What is changed in one network of the ensemble."""

    initial: float = 1.0  # Factor of the initial weights of the convolutions.
    dropout: float = 0.0  # Share of what enters the last layer.
    per_activation: bool = False  # The last hidden layer normalises each activation.


MEMBERS = {
    "larger initial weights": Member(initial=1.5),
    "dropout 5 %": Member(dropout=0.05),
    "dropout 10 %": Member(dropout=0.10),
    "per activation": Member(per_activation=True),
    "larger initial weights, dropout 5 %": Member(initial=1.5, dropout=0.05),
    "per activation, dropout 10 %": Member(dropout=0.10, per_activation=True),
}
"""The changes that the paper names; it does not say which network had which, nor how
much larger the initial weights were. Under BN weights that are a times larger turn a^2
times slower (Section 3.3), which a short training can afford for a small a only."""

UNCHANGED = "unchanged"

NETWORKS = {**MEMBERS, UNCHANGED: Member()}
"""The ensemble's, and the single network that the paper compares it with."""


class Network(nn.Module):
    """Three convolutions of stride 2 with BN and ReLU, means of the maps, a dense."""

    width: int
    member: Member

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Images `[N, H, W, C]` to logits `[N, 10]`."""
        for place, features in enumerate((self.width, 2 * self.width, 4 * self.width)):
            norm = linen.BatchNorm
            if place == 2 and self.member.per_activation:
                norm = functools.partial(norm, axis=(-3, -2, -1))
            x = models.ConvNorm(features, 3, 2, norm=norm)(x, train)
        x = nn.Dropout(self.member.dropout)(x.mean((1, 2)), deterministic=not train)
        return nn.Dense(CLASSES)(x)

    @nn.nowrap
    def variables(self, key: jax.Array, shape: tuple[int, ...]) -> Mapping[str, Any]:
        """Initial ones, for images `[H, W, C]` of that shape."""
        variables = self.init(key, jnp.zeros((2, *shape)), train=False)
        params = jax.tree.map(
            lambda leaf: leaf * self.member.initial if leaf.ndim == 4 else leaf,
            variables["params"],
        )
        return {**variables, "params": params}
