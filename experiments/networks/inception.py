"""Inception with and without Batch Normalization: the paper's Figure 5, and smaller.

The changes to GoogLeNet that the appendix names: two 3x3 convolutions for each 5x5,
average or max pools within the modules, none between them but stride 2 in 3c and 4e, a
separable first convolution with depth multiplier 8.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.networks import models


class Branches(NamedTuple):
    """Widths of a module's convolutions; without projection its stride is 2."""

    one: int
    reduce3: int
    three: int
    reduce5: int
    five: int
    projection: int  # 0: the pool is passed through.
    average: bool  # Whether the pool is one.

    def scaled(self, width: float) -> "Branches":
        """With `width` times the channels, at least one where there are any."""
        widths = (max(1, round(width * w)) if w else 0 for w in self[:-1])
        return Branches(*widths, self.average)


FIGURE5 = {
    "3a": Branches(64, 64, 64, 64, 96, 32, True),
    "3b": Branches(64, 64, 96, 64, 96, 64, True),
    "3c": Branches(0, 128, 160, 64, 96, 0, False),
    "4a": Branches(224, 64, 96, 96, 128, 128, True),
    "4b": Branches(192, 96, 128, 96, 128, 128, True),
    "4c": Branches(160, 128, 160, 128, 160, 128, True),
    "4d": Branches(96, 128, 192, 160, 192, 128, True),
    "4e": Branches(0, 128, 192, 192, 256, 0, False),
    "5a": Branches(352, 192, 320, 160, 224, 128, True),
    "5b": Branches(352, 192, 320, 192, 224, 128, False),
}
"""The modules by name, in their order. Where the table's outputs differ from the sum of
their branches (4c, 4d, 4e), the branches are taken, as all known implementations do."""


class Inception(models.Network):
    """What both sizes share; with `norm=None` the network that the paper starts from.

    That one has biases, and by the original recipe 40 % dropout and normalisation of
    local responses.
    """

    dropout: float = 0.0  # Before the classifier.
    local_response_norm: bool = False

    def _local(self, x: jax.Array) -> jax.Array:
        return local_response_norm(x) if self.local_response_norm else x

    def _classify(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.mean((1, 2))
        if self.dropout:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, dtype=self.dtype)(x)


class BNInception(Inception):
    """The paper's network for 224x224 images (Appendix, Figure 5).

    With another `width` it has as many times the channels of the figure.
    """

    width: float = 1.0

    @nn.compact
    def __call__(self, x, train):
        conv = self._conv()
        first, last = (max(1, round(self.width * features)) for features in (64, 192))
        x = conv(first, 7, 2, depth_multiplier=8)(x, train)
        x = self._local(_max_pool(x, 2))
        x = conv(last, 3)(conv(first)(x, train), train)
        x = _max_pool(self._local(x), 2)
        for branches in FIGURE5.values():
            x = _module(conv, branches.scaled(self.width), x, train)
        return self._classify(x, train)


class SmallInception(Inception):
    """Some modules of Figure 5 with `width` times their channels, for 8 to 32 pixels.

    A 3x3 convolution, with 192 times `width` channels, comes before them instead of the
    stem of 7x7 and its pools, which leave an eighth of the resolution.
    """

    modules: tuple[str, ...] = tuple(FIGURE5)
    width: float = 0.125
    stem_stride: int = 1

    @nn.compact
    def __call__(self, x, train):
        conv = self._conv()
        stem = max(1, round(192 * self.width))
        x = self._local(conv(stem, 3, self.stem_stride)(x, train))
        for name in self.modules:
            x = _module(conv, FIGURE5[name].scaled(self.width), x, train)
        return self._classify(x, train)


def plain(network: Callable[..., Inception], **fields: Any) -> Inception:
    """The network before Batch Normalization: biases, dropout 40 %, local responses."""
    original = {"norm": None, "dropout": 0.4, "local_response_norm": True}
    return network(**(original | fields))


def local_response_norm(
    x: jax.Array,
    size: int = 5,
    bias: float = 1.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
) -> jax.Array:
    """Divides by the responses of neighbouring channels (Krizhevsky et al., 2012).

    Computes `x / (bias + alpha * s) ** beta`, where `s` sums the squares of the `size`
    channels around each; outside there are zeros. GoogLeNet's numbers are the defaults.

    Args:
      x: `[..., C]`.
      size: channels, odd.
      bias: added.
      alpha: of the sum; Caffe divides it by `size`.
      beta: the exponent.
    """
    half = size // 2
    padded = jnp.pad(x**2, [(0, 0)] * (x.ndim - 1) + [(half, half)])
    channels = x.shape[-1]
    sums = sum(padded[..., i : i + channels] for i in range(size))
    return x / (bias + alpha * sums) ** beta


def _module(
    conv: Callable[..., nn.Module], branches: Branches, x: jax.Array, train: bool
) -> jax.Array:
    one, reduce3, three, reduce5, five, projection, average = branches
    stride = 1 if projection else 2
    outputs = [conv(one)(x, train)] if one else []
    outputs.append(conv(three, 3, stride)(conv(reduce3)(x, train), train))
    y = conv(five, 3)(conv(reduce5)(x, train), train)
    outputs.append(conv(five, 3, stride)(y, train))
    y = nn.avg_pool(x, (3, 3), padding="SAME") if average else _max_pool(x, stride)
    outputs.append(conv(projection)(y, train) if projection else y)
    return jnp.concatenate(outputs, -1)


def _max_pool(x: jax.Array, stride: int) -> jax.Array:
    return nn.max_pool(x, (3, 3), (stride, stride), "SAME")
