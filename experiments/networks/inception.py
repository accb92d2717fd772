"""Inception with and without Batch Normalization: the paper's Figure 5 and a small one.

It differs from GoogLeNet as the paper's appendix says. Two 3x3 convolutions replace
each 5x5 convolution. The modules have average or max pools. There are no pools between
modules; 3c and 4e have stride 2 instead. The first convolution is separable with depth
multiplier 8.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.networks import models


class Branches(NamedTuple):
    """The widths of a module's convolutions; without projection it has stride 2."""

    one: int
    reduce3: int
    three: int
    reduce5: int
    five: int
    projection: int  # 0: no convolution follows the pool.
    average: bool  # True: an average pool; False: a max pool.

    def scaled(self, width: float) -> "Branches":
        """Returns the module with `width` times the channels, rounded.

        A convolution keeps at least one channel.
        """
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
"""The modules by name, in order. In 4c, 4d and 4e the outputs in the paper's table
differ from the sum of the branches. The branches are used, as in all known
implementations."""


class Inception(models.Network):
    """The base of both Inception networks.

    With `norm=None` it is the network that the paper starts from. That network has
    biases. Its original recipe has 40 % dropout and local response normalisation.
    """

    dropout: float = 0.0  # The dropout rate before the classifier.
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

    It has `width` times the channels of the figure.
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
    """Some modules of Figure 5 with `width` times the channels, for 8 to 32 pixels.

    A 3x3 convolution with 192 times `width` channels comes before the modules. It
    replaces the 7x7 stem and its pools, which reduce the resolution to an eighth.
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
    """Returns the network without Batch Normalization.

    It has biases, 40 % dropout and local response normalisation.
    """
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
    channels around each channel. The input is padded with zeros. The defaults are those
    of GoogLeNet.

    Args:
      x: the responses, `[..., C]`.
      size: the number of channels in the sum, odd.
      bias: the constant to add.
      alpha: the factor of the sum; Caffe divides it by `size`.
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
