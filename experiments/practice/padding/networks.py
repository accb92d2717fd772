"""A feed-forward and a recurrent network over padded sequences."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbn import linen

Kind = Literal["none", "BN over padding", "masked BN", "Layer Norm"]


class Norm(nn.Module):
    """A normalisation that can mask the padding.

    Attributes:
      kind: the kind of normalisation.
      scale: the initial scale; the recurrent network has a small one (Cooijmans et al.,
        2016).
    """

    kind: Kind
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """Normalises `x`, `[..., C]`; `mask`, `[...]`, is False at padding."""
        scale_init = nn.initializers.constant(self.scale)
        if self.kind == "none":
            return x
        if self.kind == "Layer Norm":
            return nn.LayerNorm(scale_init=scale_init)(x)
        layer = linen.BatchNorm(momentum=0.9, scale_init=scale_init)
        return layer(
            x,
            use_running_average=not train,
            mask=mask[..., None] if self.kind == "masked BN" else None,
        )


class FeedForward(nn.Module):
    """Two layers for each row, the mean over rows, and a softmax."""

    kind: Kind
    units: int = 64
    rows: int = 14
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """Returns logits `[N, classes]` of `x`, `[N, rows, features]`.

        `mask`, `[N, rows]`, is False at padding.
        """
        # The features include the place of each row, because the mean loses the order.
        places = jax.nn.one_hot(jnp.arange(x.shape[1]), self.rows)
        places = jnp.where(mask[..., None], places[None], 0)
        x = jnp.concatenate([x, places], -1)
        for _ in range(2):
            x = nn.relu(Norm(self.kind)(nn.Dense(self.units)(x), mask, train))
        total = jnp.sum(jnp.where(mask[..., None], x, 0), 1)
        return nn.Dense(self.classes)(total / jnp.sum(mask, 1)[:, None])


class _Cell(nn.Module):
    kind: Kind
    units: int
    train: bool

    @nn.compact
    def __call__(self, h: jax.Array, row: tuple[jax.Array, jax.Array]):
        x, mask = row
        orthogonal = nn.initializers.orthogonal()
        recurrent = nn.Dense(self.units, use_bias=False, kernel_init=orthogonal)(h)
        given = nn.Dense(self.units)(x)
        scale = 0.1 if self.kind != "none" else 1.0
        u = Norm(self.kind, scale)(recurrent, mask, self.train)
        u = u + Norm(self.kind, scale)(given, mask, self.train)
        return jnp.where(mask[:, None], jnp.tanh(u), h), None


class Recurrent(nn.Module):
    """A recurrent tanh network over the rows, with a softmax on the last state.

    Attributes:
      kind: the kind of normalisation, of the terms of the state and of the input.
      per_step: True for statistics of every time step, False for those of all steps.
      units: the units of the state.
      classes: the number of classes of the softmax.

    References:
      Cooijmans et al., Recurrent Batch Normalization, arXiv:1603.09025.
    """

    kind: Kind
    per_step: bool = True
    units: int = 64
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """Returns logits `[N, classes]` of `x`, `[N, rows, features]`.

        `mask`, `[N, rows]`, is False at padding.
        """
        cell = _Cell(self.kind, self.units, train)
        fixed = not (self.per_step or train)  # Inference does not change statistics.
        scan = nn.scan(
            _Cell.__call__,
            variable_broadcast=("params", "batch_stats") if fixed else "params",
            variable_axes={"batch_stats": 0} if self.per_step else {},
            variable_carry=False if self.per_step or fixed else "batch_stats",
            split_rngs={"params": False},
        )
        # Without noise the first step has no variance (Cooijmans et al.).
        key = jax.random.key(0)
        h = 0.1 * jax.random.normal(key, (x.shape[0], self.units), x.dtype)
        rows = jnp.moveaxis(x, 1, 0), jnp.moveaxis(mask, 1, 0)
        if self.is_initializing() and not self.per_step:
            # Flax's scan cannot create the variables that it carries.
            h, _ = cell(h, jax.tree.map(lambda each: each[0], rows))
        else:
            h, _ = scan(cell, h, rows)
        return nn.Dense(self.classes)(h)
