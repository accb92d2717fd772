"""A small residual network with two places for a block's second normalisation."""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax

from jaxbn import linen

Place = Literal["before the sum", "after the sum"]


class Residual(nn.Module):
    """A small residual network with a softmax at the end.

    A convolution halves the size of the images. Residual blocks and the mean of each
    map follow.

    Attributes:
      channels: the channels of every convolution.
      blocks: the number of residual blocks, of two convolutions each.
      place: the place of the second normalisation of a block: on the branch, or on the
        sum of branch and shortcut.
      norm: a function that makes each normalisation.
      classes: the number of classes of the softmax.
    """

    channels: int = 16
    blocks: int = 2
    place: Place = "before the sum"
    norm: Callable[[], nn.Module] = functools.partial(linen.BatchNorm, momentum=0.9)
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, tuple[()]]:
        """Returns logits `[N, classes]` of images `[N, H, W, colours]`, and `()`."""
        conv = functools.partial(nn.Conv, self.channels, (3, 3), use_bias=False)
        x = nn.relu(self.norm()(conv(strides=2)(x), use_running_average=not train))
        for _ in range(self.blocks):
            y = nn.relu(self.norm()(conv()(x), use_running_average=not train))
            y = conv()(y)
            if self.place == "before the sum":
                y = x + self.norm()(y, use_running_average=not train)
            else:
                y = self.norm()(x + y, use_running_average=not train)
            x = nn.relu(y)
        return nn.Dense(self.classes)(x.mean((1, 2))), ()
