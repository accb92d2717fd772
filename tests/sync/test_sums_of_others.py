"""Compares the sums that a backward pass sends and adds with sums over elements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn.sync._stale import with_sums_of_others

X = jnp.array([1.0, 2.0, 4.0, 9.0])
G = jnp.array([0.5, -1.0, 2.0, 0.25])
STD = 3.0


def x_hat(mean, var, others, sent):
    """Normalises `X` by the given statistics; `var` is `STD` squared."""
    std = jnp.sqrt(jax.lax.stop_gradient(var))
    mean, var = with_sums_of_others(mean, var, std, others, sent)
    return (X - mean) / jnp.sqrt(var)


def test_own_sums_are_sent_and_those_of_others_added():
    mean, others = jnp.array(3.0), (jnp.array(0.7), jnp.array(-0.2))
    sent = (jnp.array(5.0), jnp.array(6.0))
    y, pull = jax.vjp(x_hat, mean, jnp.array(STD**2), others, sent)
    expected = (X - 3.0) / STD
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    of_mean, of_var, of_others, of_sent = pull(G)
    np.testing.assert_allclose(of_sent[0], jnp.sum(G), rtol=1e-6)
    np.testing.assert_allclose(of_sent[1], jnp.sum(expected * G), rtol=1e-5)
    np.testing.assert_allclose(of_mean, -(jnp.sum(G) + 0.7) / STD, rtol=1e-6)
    both = jnp.sum(expected * G) - 0.2
    np.testing.assert_allclose(of_var, -both / (2 * STD**2), rtol=1e-5)
    assert of_others == (0, 0)


def test_a_channel_without_division_sends_nothing():
    zeros, ones, std = jnp.zeros(2), jnp.ones(2), jnp.array([jnp.inf, 1.0])

    def function(mean, var, sent):
        return with_sums_of_others(mean, var, std, (ones, ones), sent)

    _, pull = jax.vjp(function, zeros, zeros, (ones, ones))
    of_mean, of_var, of_sent = pull((jnp.array([0.0, 2.0]), jnp.array([0.0, 3.0])))
    np.testing.assert_allclose(of_mean, [0.0, 2.0 - 1.0])
    np.testing.assert_allclose(of_var, [0.0, 3.0 - 0.5])
    np.testing.assert_allclose(of_sent[0], [0.0, -2.0])
    np.testing.assert_allclose(of_sent[1], [0.0, -6.0])


def test_no_forward_mode():
    zero = jnp.zeros(())
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(
            lambda mean: with_sums_of_others(
                mean, zero, zero, (zero, zero), (zero, zero)
            ),
            (zero,),
            (zero,),
        )
