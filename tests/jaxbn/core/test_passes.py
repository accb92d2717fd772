"""Several passes make one update, by the moments of all of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn.core import estimators, passes

X = 100 + np.random.default_rng(0).standard_normal((4, 8, 2)).astype(np.float32)


@pytest.mark.parametrize("name", estimators.NAMES)
def test_equals_one_update_by_the_whole(name):
    estimator = estimators.named(name, 0.9, True)
    collect = passes.Accumulating(estimator)
    start = estimator.update(estimator.init(2, jnp.float32), jaxbn.batch_moments(-X[0]))
    passed = passes.before_the_first(estimator, start)
    for part in (X[0, :3], X[0, 3:], X[1]):
        passed = collect.update(passed, jaxbn.batch_moments(part))
    whole = jaxbn.batch_moments(X[:2].reshape(-1, 2))
    chex.assert_trees_all_close(passed.moved, estimator.update(start, whole), rtol=1e-5)
    chex.assert_trees_all_equal(passed.state, start)
    chex.assert_trees_all_equal(collect.estimate(passed), estimator.estimate(start))


def test_scan_and_no_gradient():
    collect = passes.Accumulating(estimators.ema(0.9))

    @jax.jit
    def scanned(x):
        def body(passed, x):
            return collect.update(passed, jaxbn.batch_moments(x)), None

        return jax.lax.scan(body, collect.init(2, jnp.float32), x)[0]

    passed = scanned(X)
    chex.assert_trees_all_equal_shapes_and_dtypes(passed, collect.init(2, jnp.float32))
    whole = jaxbn.batch_moments(X.reshape(-1, 2))
    chex.assert_trees_all_close(passed.moments[:3], whole[:3], rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(scanned(x).moments.mean))(X)
    np.testing.assert_array_equal(gradient, 0)


def test_nothing_collected_moves_nothing():
    collect = passes.Accumulating(estimators.ema(0.9))
    passed = collect.init(2, jnp.float32)
    empty = jaxbn.batch_moments(jnp.ones((0, 2)))
    chex.assert_trees_all_equal(collect.update(passed, empty).moved, passed.state)
