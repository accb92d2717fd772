"""The noise after a normalisation."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.covariate_shift import noise
from experiments.networks import norms

UNITS = 400


def test_its_means_and_scales():
    ones, zeros = (jnp.full((500, UNITS), value) for value in (1.0, 0.0))
    key = jax.random.key(0)
    shifts = noise.disturbed(key, zeros)  # Of the same key: the shift alone.
    scales = noise.disturbed(key, ones) - shifts
    # 400 units: standard errors of .015 and .004.
    means = shifts.mean(0)
    assert abs(means.mean()) < 0.06
    np.testing.assert_allclose(means.std(), 1 / np.sqrt(12), rtol=0.1)
    assert jnp.abs(shifts - means[None]).max() < 0.1 + 0.02
    means = scales.mean(0)
    np.testing.assert_allclose(means.mean(), 1.125, atol=0.02)
    np.testing.assert_allclose((scales - means[None]).std(), 0.1, rtol=0.05)


def test_the_layer():
    layer = noise.Noisy(norms.NoNorm)
    x = jnp.ones((4, 3))
    variables = layer.init(jax.random.key(0), x, use_running_average=True)
    still = layer.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(still, 1.125 * x)

    def noisy(seed):
        return layer.apply(
            variables, x, use_running_average=False,
            rngs={"dropout": jax.random.key(seed)},
        )  # fmt: skip

    assert not np.array_equal(noisy(0), noisy(1))
    np.testing.assert_array_equal(noisy(0), noisy(0))
