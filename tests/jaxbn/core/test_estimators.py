"""Estimators other than the default take its place in the functional form."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn.core import estimators

X = 3 + np.random.default_rng(0).standard_normal((3, 8, 2)).astype(np.float32)


class Sums(NamedTuple):
    """The average over all batches, with an integer that must stay one."""

    mean: jax.Array
    var: jax.Array
    batches: jax.Array


CUMULATIVE = estimators.Estimator(
    lambda shape, dtype: Sums(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((), int)),
    lambda state, moments: Sums(
        state.mean + moments.mean, state.var + moments.var, state.batches + 1
    ),
    lambda state: jaxbn.BatchStats(
        state.mean / jnp.maximum(state.batches, 1),
        state.var / jnp.maximum(state.batches, 1),
    ),
)


def run(estimator, state, **options):
    for x in X:
        _, state = jaxbn.batch_norm_train(
            x, None, None, state, estimator=estimator, **options
        )
    return state


@pytest.mark.parametrize(
    "options", [{}, {"group_size": 4}, {"group_size": 4, "pool_groups": False}]
)
def test_state_of_another_estimator(options):
    start = CUMULATIVE.init(2, jnp.float32)
    state = run(CUMULATIVE, start, **options)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)
    assert int(state.batches) == 3
    mean, var = CUMULATIVE.estimate(state)
    np.testing.assert_allclose(mean, X.mean((0, 1)), rtol=1e-5)
    parts = X.reshape(6, 4, 2) if "pool_groups" in options else X
    np.testing.assert_allclose(var, parts.var(1).mean(0), rtol=1e-4)


def test_momentum_and_unbiased_are_shorthand_for_the_average():
    start = jaxbn.init_batch_stats(2)
    expected = run(None, start, momentum=0.7, unbiased=False)
    chex.assert_trees_all_equal(run(estimators.ema(0.7, False), start), expected)


def test_what_it_estimates_must_have_the_shape_of_the_channels():
    with pytest.raises(ValueError, match=r"`batch_stats.mean` must have the shape"):
        run(CUMULATIVE, CUMULATIVE.init(3, jnp.float32))
