"""Noise after a normalisation, which changes the distribution of the outputs."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

# Each unit draws a mean and a scale in every step. Each example draws its own around
# them, with these spreads.
MEAN, SPREAD_OF_MEAN = (-0.5, 0.5), 0.1
SCALE, SPREAD_OF_SCALE = (1.0, 1.25), 0.1


class Noisy(nn.Module):
    """A normalisation, then random means and variances for every example and step.

    Inference uses the expected scale instead of the noise, as in dropout.

    Attributes:
      norm: a function that makes the normalisation.

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
    """Returns `scale * x + shift` with random scales and shifts.

    Each unit has a scale and a shift, to which every element adds a little noise.

    Args:
      key: the random key of this layer and step.
      x: the normalised values, `[N, C]`.
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
