import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.outside_gradient import layers


@pytest.mark.parametrize("variant", list(layers.VARIANTS))
def test_all_variants_put_out_normalised_values(variant):
    x = 3 + 2 * np.random.default_rng(0).standard_normal((20, 4))
    module = layers.Normalisation(variant)
    bias = np.arange(4.0, dtype=np.float32)
    y = module.apply({"params": {"bias": bias}}, jnp.float32(x), False)
    expected = x - x.mean(0)
    if layers.VARIANTS[variant][0]:
        expected /= x.std(0)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", list(layers.VARIANTS))
def test_the_gradient_by_the_bias_is_zero_where_it_is_seen(variant):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((20, 4)), jnp.float32)
    module = layers.Normalisation(variant)

    def loss(bias):
        return module.apply({"params": {"bias": bias}}, x, False)[:5].sum()

    gradient = jax.grad(loss)(jnp.zeros(4))
    std = np.asarray(x).std(0) if layers.VARIANTS[variant][0] else 1.0
    expected = 0.0 if layers.VARIANTS[variant][1] else 5 / std
    np.testing.assert_allclose(gradient, expected * np.ones(4), atol=1e-4)
