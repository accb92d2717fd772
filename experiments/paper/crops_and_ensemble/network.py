"""A small convolutional network, and its six variants for the ensemble."""

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
    """The changes in one network of the ensemble."""

    initial: float = 1.0  # The factor of the initial weights of the convolutions.
    dropout: float = 0.0  # The dropout rate before the last layer.
    # True: the last hidden layer normalises each activation apart.
    per_activation: bool = False


MEMBERS = {
    "larger initial weights": Member(initial=1.5),
    "dropout 5 %": Member(dropout=0.05),
    "dropout 10 %": Member(dropout=0.10),
    "per activation": Member(per_activation=True),
    "larger initial weights, dropout 5 %": Member(initial=1.5, dropout=0.05),
    "per activation, dropout 10 %": Member(dropout=0.10, per_activation=True),
}
"""The changes that the paper names. It does not say which network has which, nor how
much larger the initial weights are. With BN, weights that are a times larger turn a^2
times more slowly (Section 3.3), so that a short training needs a small a."""

UNCHANGED = "unchanged"

NETWORKS = {**MEMBERS, UNCHANGED: Member()}
"""The networks of the ensemble, and the single network to compare with."""


class Network(nn.Module):
    """Three convolutions of stride 2 with BN and ReLU, map means and a dense layer."""

    width: int
    member: Member

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns logits `[N, 10]` of images `[N, H, W, C]`."""
        for place, features in enumerate((self.width, 2 * self.width, 4 * self.width)):
            norm = linen.BatchNorm
            if place == 2 and self.member.per_activation:
                norm = functools.partial(norm, axis=(-3, -2, -1))
            x = models.ConvNorm(features, 3, 2, norm=norm)(x, train)
        x = nn.Dropout(self.member.dropout)(x.mean((1, 2)), deterministic=not train)
        return nn.Dense(CLASSES)(x)

    @nn.nowrap
    def variables(self, key: jax.Array, shape: tuple[int, ...]) -> Mapping[str, Any]:
        """Returns initial variables for images of shape `[H, W, C]`."""
        variables = self.init(key, jnp.zeros((2, *shape)), train=False)
        params = jax.tree.map(
            lambda leaf: leaf * self.member.initial if leaf.ndim == 4 else leaf,
            variables["params"],
        )
        return {**variables, "params": params}
