"""Noise after a normalisation, which makes its outputs' distribution jump."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

# Of a unit, new every step; those of its examples lie about them.
MEAN, SPREAD_OF_MEAN = (-0.5, 0.5), 0.1
SCALE, SPREAD_OF_SCALE = (1.0, 1.25), 0.1


class Noisy(nn.Module):
    """A normalisation, then other means and variances for every example and step.

    In inference the expected scale takes the place of the noise, as in dropout.

    Attributes:
      norm: makes the normalisation.

    References:
      Santurkar et al., arXiv:1805.11604, Section 2.1 and Appendix A.
    """

    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        x = self.norm()(x, use_running_average=use_running_average)
        if use_running_average:
            return x * (sum(SCALE) / 2)
        return disturbed(self.make_rng("dropout"), x)


def disturbed(key: jax.Array, x: jax.Array) -> Any:
    """`scale * x + shift`: one of each per unit, and a little more per element.

    Args:
      key: of this layer and step.
      x: `[N, C]`.
    """
    keys = jax.random.split(key, 4)
    shift = jax.random.uniform(keys[0], x.shape[-1:], x.dtype, *MEAN)
    scale = jax.random.uniform(keys[1], x.shape[-1:], x.dtype, *SCALE)
    spread = SPREAD_OF_MEAN
    shifts = shift[None] + jax.random.uniform(
        keys[2], x.shape, x.dtype, -spread, spread
    )
    scales = scale[None] + SPREAD_OF_SCALE * jax.random.normal(
        keys[3], x.shape, x.dtype
    )
    return scales * x + shifts
