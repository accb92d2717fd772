"""The networks over padded sequences: what is padding must not matter."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.padding import networks

RNG = np.random.default_rng(0)
LENGTHS = np.array([2, 6, 3, 4, 5])
MASK = np.arange(6)[None] < LENGTHS[:, None]
X = np.where(MASK[..., None], RNG.normal(size=(5, 6, 3)), 0).astype(np.float32)
RUBBISH = np.where(MASK[..., None], X, 99).astype(np.float32)


def trained(model, x):
    variables = model.init(jax.random.key(0), X, MASK, train=False)
    return model.apply(variables, x, MASK, train=True, mutable=["batch_stats"])


EXHAUSTIVE = pytest.mark.exhaustive


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(networks.FeedForward("masked BN", 4, 6), id="masked"),
        pytest.param(networks.FeedForward("Layer Norm", 4, 6), id="layer norm"),
        pytest.param(
            networks.Recurrent("masked BN", True, 4), id="recurrent", marks=EXHAUSTIVE
        ),
        pytest.param(
            networks.Recurrent("masked BN", False, 4), id="shared", marks=EXHAUSTIVE
        ),
    ],
)
def test_rubbish_in_the_padding_changes_nothing(model):
    made, expected = trained(model, RUBBISH), trained(model, X)
    chex.assert_trees_all_close(made, expected, rtol=1e-6, atol=1e-6)


def test_over_padding_it_does():
    model = networks.FeedForward("BN over padding", 4, 6)
    assert np.abs(trained(model, RUBBISH)[0] - trained(model, X)[0]).max() > 0.01


@pytest.mark.exhaustive
def test_statistics_per_time_step_against_float64():
    model = networks.Recurrent("masked BN", True, 4)
    variables = model.init(jax.random.key(0), X, MASK, train=False)
    _, new = model.apply(variables, X, MASK, train=True, mutable=["batch_stats"])
    dense = variables["params"]["_Cell_0"]["Dense_1"]
    u = np.float64(X) @ np.float64(dense["kernel"]) + np.float64(dense["bias"])
    found = new["batch_stats"]["_Cell_0"]["Norm_1"]["BatchNorm_0"]
    for step in range(6):
        valid = u[MASK[:, step], step]
        if len(valid) < 2:  # Nothing is learned of a variance.
            np.testing.assert_array_equal(found["var"][step], 1)
            continue
        mean, var = 0.1 * valid.mean(0), 0.9 + 0.1 * valid.var(0, ddof=1)
        np.testing.assert_allclose(found["mean"][step], mean, atol=1e-6)
        np.testing.assert_allclose(found["var"][step], var, rtol=1e-5)


def test_shared_statistics_have_one_row():
    model = networks.Recurrent("masked BN", False, 4)
    variables = model.init(jax.random.key(0), X, MASK, train=False)
    chex.assert_shape(jax.tree.leaves(variables["batch_stats"]), (4,))
    assert model.apply(variables, X, MASK, train=False).shape == (5, 10)


def test_the_state_stays_after_the_last_row():
    model = networks.Recurrent("none", True, 4)
    variables = model.init(jax.random.key(0), X, MASK, train=False)
    whole = model.apply(variables, X, MASK, train=False)
    short = model.apply(variables, X[:, :2], jnp.ones((5, 2), bool), train=False)
    np.testing.assert_allclose(whole[0], short[0], rtol=1e-5, atol=1e-6)
