"""Normalisations to compare, which can replace jaxbn's layer in a network.

All have the fields `scale_init`, `activation`, `dtype` and `axis_name`. They take `x`,
`use_running_average` and optionally a `residual`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.linen import dtypes

import jaxbn
from jaxbn import linen, variants


class Apart(nn.Module):
    """A normalisation, then the residual and the activation as separate operations."""

    norm: Callable[..., nn.Module]
    scale_init: Any = nn.initializers.ones
    activation: str | None = None
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, use_running_average, residual=None):
        norm = self.norm(
            scale_init=self.scale_init, dtype=self.dtype, axis_name=self.axis_name
        )
        x = norm(x, use_running_average=use_running_average)
        x = x if residual is None else x + residual
        return x if self.activation is None else getattr(nn, self.activation)(x)


class NoNorm(nn.Module):
    """A layer that applies only a scale and a bias."""

    scale_init: Any = nn.initializers.ones
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, use_running_average):
        shape = x.shape[-1:]
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        x, scale, bias = dtypes.promote_dtype(x, scale, bias, dtype=self.dtype)
        full = (1,) * (x.ndim - 1) + shape
        return x * scale.reshape(full) + bias.reshape(full)


class OfEachExample(nn.Module):
    """A normalisation of each example, the same in training and inference."""

    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, use_running_average):
        del use_running_average
        return self.norm()(x)


class Haiku(nn.Module):
    """A wrapper of `haiku.BatchNorm`; the state is a variable of this module."""

    scale_init: Any = nn.initializers.ones
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, use_running_average):
        import haiku as hk

        axis_name = None if self.is_initializing() else self.axis_name

        def normalise(x, training):
            layer = hk.BatchNorm(True, True, 0.99, cross_replica_axis=axis_name)
            return layer(x, is_training=training)

        layer = hk.transform_with_state(normalise)
        state = self.variable(
            "batch_stats", "haiku", lambda: layer.init(jax.random.key(0), x, True)[1]
        )
        shape = x.shape[-1:]
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        # Haiku's own parameters have the dtype and the rank of the input.
        x, scale, bias = dtypes.promote_dtype(x, scale, bias, dtype=self.dtype)
        full = (1,) * (x.ndim - 1) + shape
        params = {"scale": scale.reshape(full), "offset": bias.reshape(full)}
        y, new = layer.apply(
            {"batch_norm": params}, state.value, None, x, not use_running_average
        )
        if not self.is_initializing() and not use_running_average:
            state.value = new
        return y


JAXBN = linen.BatchNorm
FLAX = functools.partial(Apart, nn.BatchNorm)
NONE = functools.partial(Apart, NoNorm)
LAYER = functools.partial(OfEachExample, nn.LayerNorm)


def group(groups: int) -> Callable[..., nn.Module]:
    """Returns Group Normalization (Wu and He, 2018) with `groups` groups."""
    norm = functools.partial(nn.GroupNorm, num_groups=groups)
    return functools.partial(OfEachExample, norm)


class Normalisation(NamedTuple):
    """A layer, and further fields of the network, such as `policy`."""

    layer: Callable[..., nn.Module]
    fields: Mapping[str, Any] = {}


def _jaxbn(**options: Any) -> Normalisation:
    return Normalisation(functools.partial(JAXBN, **options))


ALL = {
    "none": Normalisation(NONE),
    "flax": Normalisation(FLAX),
    "flax stable": Normalisation(
        functools.partial(
            Apart, functools.partial(nn.BatchNorm, use_fast_variance=False)
        )
    ),
    "haiku": Normalisation(functools.partial(Apart, Haiku)),
    "jaxbn": Normalisation(JAXBN),
    "jaxbn, activation outside": Normalisation(functools.partial(Apart, JAXBN)),
    "jaxbn, in_place": _jaxbn(in_place=True),
    "jaxbn, joined": Normalisation(JAXBN, {"joined": True}),
    "jaxbn, recomputed": Normalisation(JAXBN, {"policy": jaxbn.remat_policy}),
    "jaxbn, renorm": _jaxbn(variant=variants.Renorm()),
    "jaxbn, fast variance": _jaxbn(use_fast_variance=True),
    "jaxbn, checked": _jaxbn(variance="checked"),
    "jaxbn, two_pass": _jaxbn(variance="two_pass"),
    "jaxbn, exact": _jaxbn(variance="exact"),
    "jaxbn, sliced": _jaxbn(variance="sliced"),
    "jaxbn, shifted": _jaxbn(variance="shifted"),
}

# `FOUR` are compared in every table. `FORMS` are jaxbn with each form of the variance.
FOUR = ("none", "flax", "flax stable", "jaxbn")
FORMS = ("jaxbn, checked", "jaxbn, exact", "jaxbn, two_pass", "jaxbn, sliced",
         "jaxbn, shifted")  # fmt: skip
"""Names in `ALL`, whose last six force one form of the variance."""
