"""Normalisations of `x + bias`, inside and outside the gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxbn

EPSILON = 1e-5

# The first value is True to divide by the standard deviation, the second to include
# the statistics in the gradient.
VARIANTS = {
    "BN": (True, True),
    "centred inside": (False, True),
    "centred outside": (False, False),
    "centred and scaled outside": (True, False),
}


def normalise(x: jax.Array, scales: bool, inside: bool) -> jax.Array:
    """Centres `x`, `[N, C]`, and divides it by its standard deviation if `scales`.

    The gradient treats the statistics as constants unless `inside`.
    """
    mean, var = jnp.mean(x, 0, keepdims=True), jnp.var(x, 0, keepdims=True)
    if not inside:
        mean, var = jax.lax.stop_gradient((mean, var))
    x = x - mean
    return x * jax.lax.rsqrt(var + EPSILON) if scales else x


class Normalisation(nn.Module):
    """A bias and a normalisation that removes it, as in the paper's Section 2.

    It uses the statistics of the batch in evaluation too.
    """

    variant: str

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """Normalises `x`, `[N, C]`."""
        del use_running_average
        x = x + self.param("bias", nn.initializers.zeros, x.shape[-1:])[None]
        if self.variant == "BN":
            zeros, ones = jnp.zeros(x.shape[-1]), jnp.ones(x.shape[-1])
            stats = jaxbn.BatchStats(zeros, ones)
            return jaxbn.batch_norm_train(x, ones, zeros, stats, epsilon=EPSILON)[0]
        return normalise(x, *VARIANTS[self.variant])
