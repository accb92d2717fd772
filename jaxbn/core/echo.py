"""The backward pass of peers from earlier steps, heard in one's own.

With `x_hat = (x - mean) / std` and g its cotangent, the cotangents of mean and variance
are `-sum(g) / std` and `-sum(x_hat * g) / (2 std^2)`, the sums over all devices that
share them. `echo` says its own sums and adds those of its peers.
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
    """Mean and variance as they are; what peers said joins their cotangents.

    It has no forward-mode derivative: a sum that is not that of this step is no linear
    function of the tangents.

    Args:
      mean: that normalises.
      var: that normalises.
      std: by which is divided, `sqrt(var + epsilon)`; infinite where nothing is.
      peers: their sums of g and of `x_hat * g`.
      said: of any value; their cotangents are the sums of this device.

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
