"""Adds the other devices' backward pass of earlier steps to that of this device.

With `x_hat = (x - mean) / std` and g its cotangent, the cotangents of mean and variance
are `-sum(g) / std` and `-sum(x_hat * g) / (2 std^2)`. The sums are over all devices
that share mean and variance. `echo` returns the sums of this device as the cotangents
of `said`, and adds the sums that the other devices sent in earlier steps.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def echo(
    mean: jax.Array,
    var: jax.Array,
    std: jax.Array,
    peers: tuple[jax.Array, jax.Array],
    said: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance; adds the other devices' sums to their cotangents.

    It has no forward-mode derivative: a sum from another step is not a linear function
    of the tangents.

    Args:
      mean: the mean that normalises.
      var: the variance that normalises.
      std: the divisor, `sqrt(var + epsilon)`; infinite where there is no division.
      peers: the other devices' sums of g and of `x_hat * g`.
      said: arrays of any value; their cotangents are the sums of this device.

    Returns:
      `mean` and `var`.
    """
    del std, peers, said
    return mean, var


def _forward(mean, var, std, peers, said):
    del said
    return (mean, var), (std, peers)


def _backward(kept, cotangents):
    std, peers = kept
    of_mean, of_var = cotangents
    divided = jnp.isfinite(std)
    std = jnp.where(divided, std, 1)
    said = (-of_mean * std, -2 * of_var * jnp.square(std))
    gradient, product = (jnp.where(divided, part, 0) for part in peers)
    of_mean = of_mean - gradient / std
    of_var = of_var - product / (2 * jnp.square(std))
    silent = jnp.zeros_like(std), jax.tree.map(jnp.zeros_like, peers)
    return (of_mean, of_var, *silent, said)


echo.defvjp(_forward, _backward)
