"""Whitening by the covariance of a mini-batch, as a function and as a layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

EPSILON = 1e-5


def covariance(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean `[C]` and covariance `[C, C]` of `[N, C]`, over N."""
    mean = jnp.mean(x, 0)
    centred = x - mean[None]
    return mean, centred.T @ centred / len(x)


def matrix(cov: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """The inverse square root of `cov` and epsilon on its diagonal, `[C, C]`."""
    values, vectors = jnp.linalg.eigh(cov)
    # Rounding makes eigenvalues that are 0 a little negative.
    rstd = jax.lax.rsqrt(jnp.maximum(values, 0) + epsilon)
    return (vectors * rstd[None]) @ vectors.T


def whiten(x: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """`[N, C]` with mean 0 and the identity as its covariance."""
    mean, cov = covariance(x)
    return (x - mean[None]) @ matrix(cov, epsilon)


class Whitening(nn.Module):
    """In the place of `linen.BatchNorm`: whitens, then scales and shifts each unit."""

    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """`[N, C]` whitened by the batch, or by running mean and covariance."""
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
