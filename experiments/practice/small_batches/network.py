"""A small convolutional network whose normalisation is one of the relatives of BN."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbn import linen, variants

# The paper's window of `MovingAverage` makes batches of this size of small ones.
_REPLACED = 32


class _CentralizedDense(nn.Module):
    """A dense layer whose weights have mean 0, as `MovingAverage` needs them."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        return x @ variants.centralize(kernel)


class ConvNet(nn.Module):
    """Convolutions of 3x3 and stride 2, each with a normalisation and ReLU.

    A convolution is a dense layer on patches, so that `CrossIteration` has its inputs.

    Attributes:
      kind: a key of `KINDS`.
      norm: makes the layer of normalisation.
      channels: the channels of each convolution.
      warmup: the steps of `CrossIteration` that are plain BN.
    """

    kind: str
    norm: Callable[..., Any]
    channels: tuple[int, ...]
    warmup: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for channels in self.channels:
            x = self._normalised(_patches(x), channels, train)
        return nn.Dense(10)(x.mean((1, 2)))

    @nn.nowrap
    def _normalised(self, patches: jax.Array, channels: int, train: bool) -> jax.Array:
        init = nn.initializers.he_normal()
        dense = nn.Dense(channels, use_bias=False, kernel_init=init)
        if self.kind == "MABN":
            return nn.relu(self.norm()(_CentralizedDense(channels)(patches), not train))
        if self.kind == "CBN":
            variant = variants.CrossIteration(patches.shape[-1], 4, self.warmup)
            norm = self.norm(variant=variant)
            return nn.relu(linen.ConvBatchNorm(dense, norm)(patches, not train))
        if self.kind == "FRN":  # Its threshold takes the place of ReLU.
            return self.norm()(dense(patches))
        if self.kind in ("Group Norm", "Layer Norm"):
            return nn.relu(self.norm()(dense(patches)))
        return nn.relu(self.norm()(dense(patches), not train))


def _patches(x: jax.Array) -> jax.Array:
    """Returns the inputs of a convolution of 3x3 and stride 2, `[N, H/2, W/2, 9 C]`."""
    height, width = (-(-size // 2) for size in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [
        x[:, row : row + 2 * height : 2, column : column + 2 * width : 2]
        for row in range(3)
        for column in range(3)
    ]
    shape = (len(x), height, width, x.shape[-1])
    return jnp.concatenate([part.reshape(shape) for part in parts], -1)


def kinds(batch_size: int, steps: int) -> dict[str, Callable[..., Any]]:
    """Returns the layer of every kind.

    Args:
      batch_size: the examples of a mini-batch.
      steps: the number of steps of a training.
    """
    # The running statistics average over the last 1000 examples, at every size.
    momentum = 1 - batch_size / 1000
    norm = functools.partial(linen.BatchNorm, momentum=momentum, estimator="debiased")
    renorm = variants.Renorm(warmup_steps=steps // 10)
    window = max(1, _REPLACED // batch_size)
    moving = variants.MovingAverage(window, warmup_steps=steps // 10)
    # Without a mean there is no m / (m - 1).
    average = functools.partial(norm, variant=moving, unbiased=False)
    return {
        "BN": norm,
        "Renorm": functools.partial(norm, variant=renorm),
        "MABN": average,
        "CBN": norm,
        "FRN": variants.FilterResponseNorm,
        "Group Norm": functools.partial(nn.GroupNorm, num_groups=8),
        # Over the positions too, as it is usual in convolutional networks.
        "Layer Norm": functools.partial(nn.GroupNorm, num_groups=1),
    }


def accuracy(
    run: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    data: Mapping[str, jax.Array],
    size: int,
) -> jax.Array:
    """Returns the accuracy on all whole batches of the data.

    Args:
      run: a function of variables and images to logits, in evaluation mode.
      variables: the variables of the network.
      data: `image`, `[N, H, W, 1]`, and `label`, `[N]`.
      size: the number of images of a batch.
    """
    number = len(data["label"]) // size
    parts = jax.tree.map(
        lambda leaf: leaf[: number * size].reshape(number, size, *leaf.shape[1:]),
        {"image": data["image"], "label": data["label"]},
    )

    def right(part: Mapping[str, jax.Array]) -> jax.Array:
        return jnp.mean(run(variables, part["image"]).argmax(-1) == part["label"])

    return jnp.mean(jax.lax.map(right, parts))
