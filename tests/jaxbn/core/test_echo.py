"""Compares the sums that `echo` returns and adds with sums over the elements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn.core import echo

X = jnp.array([1.0, 2.0, 4.0, 9.0])
G = jnp.array([0.5, -1.0, 2.0, 0.25])
STD = 3.0


def x_hat(mean, var, peers, said):
    """Normalises `X` by the given statistics; `var` is `STD` squared."""
    std = jnp.sqrt(jax.lax.stop_gradient(var))
    mean, var = echo.echo(mean, var, std, peers, said)
    return (X - mean) / jnp.sqrt(var)


def test_the_sums_of_this_device_and_of_its_peers():
    mean, peers = jnp.array(3.0), (jnp.array(0.7), jnp.array(-0.2))
    said = (jnp.array(5.0), jnp.array(6.0))
    y, pull = jax.vjp(x_hat, mean, jnp.array(STD**2), peers, said)
    expected = (X - 3.0) / STD
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    of_mean, of_var, of_peers, of_said = pull(G)
    np.testing.assert_allclose(of_said[0], jnp.sum(G), rtol=1e-6)
    np.testing.assert_allclose(of_said[1], jnp.sum(expected * G), rtol=1e-5)
    np.testing.assert_allclose(of_mean, -(jnp.sum(G) + 0.7) / STD, rtol=1e-6)
    both = jnp.sum(expected * G) - 0.2
    np.testing.assert_allclose(of_var, -both / (2 * STD**2), rtol=1e-5)
    assert of_peers == (0, 0)


def test_where_nothing_is_divided_nothing_is_said():
    arrays = (jnp.zeros(2), jnp.zeros(2), jnp.array([jnp.inf, 1.0]))
    peers = (jnp.ones(2), jnp.ones(2))
    _, pull = jax.vjp(lambda m, v, said: echo.echo(m, v, arrays[2], peers, said),
                      *arrays[:2], peers)  # fmt: skip
    of_mean, of_var, of_said = pull((jnp.array([0.0, 2.0]), jnp.array([0.0, 3.0])))
    np.testing.assert_allclose(of_mean, [0.0, 2.0 - 1.0])
    np.testing.assert_allclose(of_var, [0.0, 3.0 - 0.5])
    np.testing.assert_allclose(of_said[0], [0.0, -2.0])
    np.testing.assert_allclose(of_said[1], [0.0, -6.0])


def test_no_forward_mode():
    zero = jnp.zeros(())
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(
            lambda mean: echo.echo(mean, zero, zero, (zero, zero), (zero, zero)),
            (zero,),
            (zero,),
        )
