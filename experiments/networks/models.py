"""The convolutional networks of the studies: ResNet-50, BN-Inception, a small one.

Images are `[N, H, W, 3]`; every convolution is followed by Batch Normalization and by
ReLU, which the layer applies itself, after the shortcut where there is one. `dtype` is
what they compute in; parameters are float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbn import linen

Norm = Callable[..., nn.Module]  # With the fields and arguments of linen.BatchNorm.
Policy = Callable[..., Any]  # Of `jax.checkpoint`.


class ConvNorm(nn.Module):
    """Convolution, normalisation, sum with a residual, activation."""

    features: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    depth_multiplier: int = 0  # Not 0: depthwise first (the paper's separable stem).
    activation: str | None = "relu"
    norm: Norm = linen.BatchNorm
    scale_init: Any = nn.initializers.ones
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train, residual=None):
        window, stride = (self.kernel,) * 2, (self.stride,) * 2
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        if self.depth_multiplier:
            channels = x.shape[-1]
            depthwise = channels * self.depth_multiplier
            x = conv(depthwise, window, stride, feature_group_count=channels)(x)
            window = stride = (1, 1)
        x = conv(self.features, window, stride, feature_group_count=self.groups)(x)
        norm = self.norm(
            scale_init=self.scale_init, activation=self.activation, dtype=self.dtype
        )
        return norm(x, use_running_average=not train, residual=residual)


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
    """What all networks here take."""

    classes: int = 1000
    norm: Norm = linen.BatchNorm
    activation: str = "relu"
    dtype: Any = None

    @nn.nowrap
    def _conv(self) -> Callable[..., nn.Module]:
        return functools.partial(
            ConvNorm, norm=self.norm, activation=self.activation, dtype=self.dtype
        )


class ResNet50(Network):
    """ResNet-50 v1.5: the stride is in the 3x3 convolution (He et al., 2015).

    With a `policy`, the backward pass recomputes what it does not keep of each block.
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
                name = f"stage{stage}_block{block}"  # The same where recomputed.
                x = bottleneck(64 * 2**stage, stride, not block, conv, name=name)(
                    x, train
                )
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


# Figure 5 of the paper: 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3, pool
# projection (0: pass through, and stride 2), and whether the pool is an average.
_INCEPTION = {
    "3a": (64, 64, 64, 64, 96, 32, True),
    "3b": (64, 64, 96, 64, 96, 64, True),
    "3c": (0, 128, 160, 64, 96, 0, False),
    "4a": (224, 64, 96, 96, 128, 128, True),
    "4b": (192, 96, 128, 96, 128, 128, True),
    "4c": (160, 128, 160, 128, 160, 128, True),
    "4d": (96, 128, 192, 160, 192, 128, True),
    "4e": (0, 128, 192, 192, 256, 0, False),
    "5a": (352, 192, 320, 160, 224, 128, True),
    "5b": (352, 192, 320, 192, 224, 128, False),
}


class BNInception(Network):
    """The paper's network (Appendix, Figure 5), widths as its branches give them.

    The table's outputs of 4c, 4d and 4e differ from the sum of their branches; the
    branches are taken, as all known implementations do.
    """

    @nn.compact
    def __call__(self, x, train):
        conv = self._conv()
        pool = functools.partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
        x = conv(64, 7, 2, depth_multiplier=8)(x, train)
        x = pool(x, strides=(2, 2))
        x = conv(192, 3)(conv(64)(x, train), train)
        x = pool(x, strides=(2, 2))
        for (
            one,
            reduce3,
            three,
            reduce5,
            five,
            projection,
            average,
        ) in _INCEPTION.values():
            stride = 1 if projection else 2
            branches = [conv(one)(x, train)] if one else []
            branches.append(conv(three, 3, stride)(conv(reduce3)(x, train), train))
            y = conv(five, 3)(conv(reduce5)(x, train), train)
            branches.append(conv(five, 3, stride)(y, train))
            if average:
                y = nn.avg_pool(x, (3, 3), padding="SAME")
            else:
                y = pool(x, strides=(stride, stride))
            branches.append(conv(projection)(y, train) if projection else y)
            x = jnp.concatenate(branches, -1)
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: widened, depthwise, narrowed without activation."""

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
    """3x3 convolutions and inverted residuals (Sandler et al., 2018), all small."""

    blocks: tuple[tuple[int, int], ...] = (  # Channels and stride of each.
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
    return nn.remat(block, policy=policy, static_argnums=(2,))  # `train`.


class NormLayer(NamedTuple):
    """What one normalisation layer works on, per image."""

    channels: int
    positions: int


def norm_layers(model: nn.Module, image_size: int = 224) -> list[NormLayer]:
    """The normalisation layers of a model, in the order they run."""
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
