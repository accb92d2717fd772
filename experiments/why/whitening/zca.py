"""Whitening by the covariance of a mini-batch, as a function and as a layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

EPSILON = 1e-5


def covariance(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean `[C]` and covariance `[C, C]` of `x`, `[N, C]`, over N."""
    mean = jnp.mean(x, 0)
    centred = x - mean[None]
    return mean, centred.T @ centred / len(x)


def matrix(cov: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """Returns the inverse square root of `cov` with epsilon added to its diagonal."""
    values, vectors = jnp.linalg.eigh(cov)
    # Eigenvalues of 0 can be a little negative after rounding.
    rstd = jax.lax.rsqrt(jnp.maximum(values, 0) + epsilon)
    return (vectors * rstd[None]) @ vectors.T


def whiten(x: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """Whitens `x`, `[N, C]`: mean 0 and the identity as covariance."""
    mean, cov = covariance(x)
    return (x - mean[None]) @ matrix(cov, epsilon)


class Whitening(nn.Module):
    """A replacement of `linen.BatchNorm` that whitens, then scales and shifts."""

    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """Whitens `x`, `[N, C]`, by the batch or by running mean and covariance."""
        units = x.shape[-1]
        means = self.variable("batch_stats", "mean", jnp.zeros, units)
        covs = self.variable("batch_stats", "cov", jnp.eye, units)
        scale = self.param("scale", nn.initializers.ones, units)
        bias = self.param("bias", nn.initializers.zeros, units)
        if use_running_average:
            mean, cov = means.value, covs.value
        else:
            mean, cov = covariance(x)
            for running, new in ((means, mean), (covs, cov)):
                old = self.momentum * running.value
                running.value = old + (1 - self.momentum) * new
        return (x - mean[None]) @ matrix(cov) * scale[None] + bias[None]
