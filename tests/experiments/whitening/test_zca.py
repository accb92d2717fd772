import jax
import jax.numpy as jnp
import numpy as np

from experiments.whitening import zca


def make_batch(examples=50, units=4):
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((examples, units)) @ rng.standard_normal((units, units))
    return mixed + 3


def test_whitened_in_float64():
    x = make_batch()
    found = np.float64(zca.whiten(jnp.float32(x), 0.0))
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found.T @ found / len(x), np.eye(4), atol=1e-4)
    cov = np.cov(x, rowvar=False, bias=True)
    values, vectors = np.linalg.eigh(cov)
    # The symmetric root: whitened units stay as near to what they were as can be.
    expected = (x - x.mean(0)) @ (vectors / np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_layer_keeps_running_mean_and_covariance():
    x = jnp.float32(make_batch())
    layer = zca.Whitening(momentum=0.0)
    variables = layer.init(jax.random.key(0), x, use_running_average=True)
    y, updates = layer.apply(
        variables, x, use_running_average=False, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(y, zca.whiten(x), atol=1e-4)
    again = layer.apply(variables | updates, x, use_running_average=True)
    np.testing.assert_allclose(again, y, atol=1e-4)
    half = zca.Whitening(momentum=0.5)
    _, updates = half.apply(
        variables, x, use_running_average=False, mutable=["batch_stats"]
    )
    expected = 0.5 * np.eye(4) + 0.5 * np.cov(x, rowvar=False, bias=True)
    np.testing.assert_allclose(updates["batch_stats"]["cov"], expected, rtol=1e-4)
