"""Normalisations of `x + bias`, inside and outside the gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxbn

EPSILON = 1e-5

# Whether it divides by the standard deviation, and whether the gradient sees it.
VARIANTS = {
    "BN": (True, True),
    "centred inside": (False, True),
    "centred outside": (False, False),
    "centred and scaled outside": (True, False),
}


def normalise(x: jax.Array, scales: bool, inside: bool) -> jax.Array:
    """`[N, C]` without its mean and, if it `scales`, over its standard deviation."""
    mean, var = jnp.mean(x, 0, keepdims=True), jnp.var(x, 0, keepdims=True)
    if not inside:
        mean, var = jax.lax.stop_gradient((mean, var))
    x = x - mean
    return x * jax.lax.rsqrt(var + EPSILON) if scales else x


class Normalisation(nn.Module):
    """A bias that the normalisation takes away again, as in the paper's Section 2.

    By the statistics of the batch, in evaluation too: there is nothing else to train.
    """

    variant: str

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """`[N, C]` normalised."""
        del use_running_average
        x = x + self.param("bias", nn.initializers.zeros, x.shape[-1:])[None]
        if self.variant == "BN":
            zeros, ones = jnp.zeros(x.shape[-1]), jnp.ones(x.shape[-1])
            stats = jaxbn.BatchStats(zeros, ones)
            return jaxbn.batch_norm_train(x, ones, zeros, stats, epsilon=EPSILON)[0]
        return normalise(x, *VARIANTS[self.variant])
