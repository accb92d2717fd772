"""The convolutional networks of the studies: ResNet-50, a small one and their parts.

Images are `[N, H, W, 3]`. Batch Normalization follows every convolution. The layer adds
the shortcut, if there is one, and applies ReLU itself. The networks compute in `dtype`;
parameters are float32. BN-Inception is in `inception`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbn import linen

Norm = Callable[..., nn.Module]  # It has fields and arguments of linen.BatchNorm.
Policy = Callable[..., Any]  # A policy of `jax.checkpoint`.


class ConvNorm(nn.Module):
    """A convolution, a normalisation, the sum with a residual and an activation.

    The convolution has a bias only without a `norm`, which has a bias of its own.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    depth_multiplier: int = 0  # Above 0: a depthwise convolution first (paper's stem).
    activation: str | None = "relu"
    norm: Norm | None = linen.BatchNorm
    scale_init: Any = nn.initializers.ones
    dtype: Any = None
    joined: bool = False  # Use `linen.ConvBatchNorm` where it can be.

    @nn.compact
    def __call__(self, x, train, residual=None):
        window, stride = (self.kernel,) * 2, (self.stride,) * 2
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        if self.depth_multiplier:
            channels = x.shape[-1]
            depthwise = channels * self.depth_multiplier
            x = conv(depthwise, window, stride, feature_group_count=channels)(x)
            window = stride = (1, 1)
        last = functools.partial(conv, use_bias=self.norm is None)
        last = last(self.features, window, stride, feature_group_count=self.groups)
        if self.norm is None:
            x = last(x)
            x = x if residual is None else x + residual
            return x if self.activation is None else getattr(nn, self.activation)(x)
        norm = self.norm(
            scale_init=self.scale_init, activation=self.activation, dtype=self.dtype
        )
        if self.joined and window == (1, 1) and self.groups == 1:
            return linen.ConvBatchNorm(last, norm)(x, not train, residual=residual)
        return norm(last(x), use_running_average=not train, residual=residual)


class Bottleneck(nn.Module):
    """A block of ResNet-50; its last scale starts at 0 (Goyal et al., 2017)."""

    features: int
    stride: int
    projection: bool
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train):
        y = self.conv(self.features)(x, train)
        y = self.conv(self.features, 3, self.stride)(y, train)
        wide = 4 * self.features
        if self.projection:
            x = self.conv(wide, 1, self.stride, activation=None)(x, train)
        last = self.conv(wide, scale_init=nn.initializers.zeros)
        return last(y, train, residual=x)


class Network(nn.Module):
    """The base of all networks, with their common fields."""

    classes: int = 1000
    norm: Norm | None = linen.BatchNorm
    activation: str = "relu"
    dtype: Any = None
    joined: bool = False

    @nn.nowrap
    def _conv(self) -> Callable[..., nn.Module]:
        return functools.partial(
            ConvNorm,
            norm=self.norm,
            activation=self.activation,
            dtype=self.dtype,
            joined=self.joined,
        )


class ResNet50(Network):
    """ResNet-50 v1.5: the stride is in the 3x3 convolution (He et al., 2015).

    With a `policy`, the backward pass of each block recomputes what was not saved.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    policy: Policy | None = None

    @nn.compact
    def __call__(self, x, train):
        conv = self._conv()
        bottleneck = _recomputed(Bottleneck, self.policy)
        x = conv(64, 7, 2)(x, train)
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                # `nn.remat` would change the automatic name.
                name = f"stage{stage}_block{block}"
                x = bottleneck(64 * 2**stage, stride, not block, conv, name=name)(
                    x, train
                )
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


class InvertedResidual(nn.Module):
    """A block of MobileNetV2.

    It widens the input, convolves depthwise, and narrows it without an activation.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train):
        wide = 6 * x.shape[-1]
        y = self.conv(wide)(x, train)
        y = self.conv(wide, 3, self.stride, groups=wide)(y, train)
        residual = x if self.stride == 1 and x.shape[-1] == self.features else None
        narrow = self.conv(self.features, activation=None)
        return narrow(y, train, residual=residual)


class SmallNetwork(Network):
    """A small network of 3x3 convolutions and inverted residuals.

    The blocks are those of Sandler et al. (2018).
    """

    blocks: tuple[tuple[int, int], ...] = (  # The channels and the stride of each.
        (24, 2), (24, 1), (32, 2), (32, 1), (64, 2), (64, 1), (96, 1), (96, 1),
    )  # fmt: skip
    policy: Policy | None = None

    @nn.compact
    def __call__(self, x, train):
        conv = self._conv()
        block = _recomputed(InvertedResidual, self.policy)
        x = conv(16, 3)(conv(32, 3, 2)(x, train), train)
        for place, (features, stride) in enumerate(self.blocks):
            x = block(features, stride, conv, name=f"block{place}")(x, train)
        x = conv(256)(x, train)
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


def _recomputed(block: Any, policy: Policy | None) -> Any:
    if policy is None:
        return block
    return nn.remat(block, policy=policy, static_argnums=(2,))  # `train` is static.


class NormLayer(NamedTuple):
    """The size of the input of a normalisation layer, per image."""

    channels: int
    positions: int


def norm_layers(model: nn.Module, image_size: int = 224) -> list[NormLayer]:
    """Returns the normalisation layers of a model, in the order in which they run."""
    layers = []

    def note(call, args, kwargs, context):
        layer = isinstance(context.module, linen.BatchNorm)
        if layer and context.method_name == "__call__":
            _, *positions, channels = args[0].shape
            size = math.prod(positions)
            layers.append(NormLayer(channels, size))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
        init = functools.partial(model.init, train=False)
        jax.eval_shape(init, jax.random.key(0), images)
    return layers
