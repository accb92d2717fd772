"""Estimates beside a training, and their distance to the truth, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.inference_statistics import statistics

RNG = np.random.default_rng(0)
BATCHES = RNG.normal(3.0, 2.0, (7, 4, 5))  # Seven of four examples, five units.


def followed(window=3):
    estimators = statistics.all_estimators(0.9, window)
    own = [
        {"layer": {"mean": jnp.asarray(b.mean(0)), "var": jnp.asarray(b.var(0))}}
        for b in BATCHES
    ]
    states = statistics.init(estimators, own[0])
    for stats in own:
        states = statistics.update(estimators, states, stats, 4)
    return statistics.estimate(estimators, states)


def expected(name):
    mean, var = BATCHES.mean(1), BATCHES.var(1, ddof=1)
    if name == "cumulative":
        return mean.mean(0), var.mean(0)
    if name == "window":
        return mean[-3:].mean(0), var[-3:].mean(0)
    weights = 0.1 * 0.9 ** np.arange(6, -1, -1)
    if name == "debiased":
        weights /= weights.sum()
        return weights @ mean, weights @ var
    var = BATCHES.var(1) if name == "ema, biased" else var
    return weights @ mean, weights @ var + 0.9**7  # From variance 1.


@pytest.mark.parametrize(
    "name", ["ema", "ema, biased", "debiased", "window", "cumulative"]
)
def test_every_estimator_is_fed(name):
    found = followed()[name]["layer"]
    for quantity, value in zip(("mean", "var"), expected(name), strict=True):
        # Float32 rounding of seven updates.
        np.testing.assert_allclose(found[quantity], value, rtol=1e-5)


def test_distances():
    def stats(mean, var):
        return {"b": {"mean": jnp.array(mean), "var": jnp.array(var)}}

    found = statistics.distances(
        stats([1.0, 2.0], [4.0, 1.0]) | {"a": stats([0.0], [2.0])["b"]},
        stats([1.0, -2.0], [1.0, 4.0]) | {"a": stats([0.0], [2.0])["b"]},
    )
    np.testing.assert_allclose(found["mean"], [0, np.sqrt(((4 / 2) ** 2) / 2)])
    np.testing.assert_allclose(found["var"], [0, np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(found["ratio"], [1, (4 + 1 / 4) / 2])
