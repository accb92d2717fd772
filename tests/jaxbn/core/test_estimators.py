"""Estimators other than the default take its place in the functional form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn.core import estimators
from tests import users_estimator

X = 3 + np.random.default_rng(0).standard_normal((3, 8, 2)).astype(np.float32)


CUMULATIVE = users_estimator.Cumulative()


def run(estimator, state, **options):
    for x in X:
        _, state = jaxbn.batch_norm_train(
            x, None, None, state, estimator=estimator, **options
        )
    return state


@pytest.mark.parametrize("options", [{}, {"group_size": 4}])
def test_state_of_another_estimator(options):
    start = CUMULATIVE.init(2, jnp.float32)
    state = run(CUMULATIVE, start, **options)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)
    assert int(state.batches) == 3
    mean, var = CUMULATIVE.estimate(state)
    np.testing.assert_allclose(mean, X.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(var, X.var(1).mean(0), rtol=1e-4)


def test_momentum_and_unbiased_are_shorthand_for_the_average():
    start = jaxbn.init_batch_stats(2)
    expected = run(None, start, momentum=0.7, unbiased=False)
    chex.assert_trees_all_equal(run(estimators.ema(0.7, False), start), expected)


def test_what_it_estimates_must_have_the_shape_of_the_channels():
    with pytest.raises(ValueError, match=r"`batch_stats.mean` must have the shape"):
        run(CUMULATIVE, CUMULATIVE.init(3, jnp.float32))


OWN = {
    "ema": estimators.ema(0.9),
    "debiased": estimators.debiased(0.9),
    "cumulative": estimators.cumulative(),
    "window": estimators.window(3),
}


def follow(estimator, batches, shape=1):
    state = estimator.init(shape, jnp.float32)
    for batch in batches:
        state = estimator.update(state, batch)
    return state


def moments(count, mean, var):
    return jaxbn.Moments(
        *(jnp.full(1, value, jnp.float32) for value in (count, mean, var))
    )


@pytest.mark.parametrize("name", ["debiased", "cumulative", "window"])
def test_the_first_batch_is_the_estimate(name):
    mean, var = OWN[name].estimate(follow(OWN[name], [moments(5, 7.0, 8.0)]))
    np.testing.assert_allclose((mean[0], var[0]), (7, 8 * 5 / 4), rtol=1e-6)


def test_average_is_debiased_with_any_momentum():
    batches = [moments(5, value, value**2) for value in (1.0, 4.0, 9.0)]
    for momentum in (0.0, 0.5, 1.0):
        mean, var = follow(estimators.debiased(momentum, unbiased=False), batches)[:2]
        weights = np.array([momentum**2, momentum, 1.0])
        values = np.array([1.0, 4.0, 9.0])
        if momentum == 1.0:  # Nothing new ever counts.
            expected = 0.0, 1.0
        else:
            weights /= weights.sum()
            expected = weights @ values, weights @ values**2
        np.testing.assert_allclose((mean[0], var[0]), expected, rtol=1e-6)


def test_window_forgets():
    batches = [moments(5, value, 1.0) for value in (100.0, 1.0, 2.0, 3.0)]
    mean, var = OWN["window"].estimate(follow(OWN["window"], batches))
    np.testing.assert_allclose((mean[0], var[0]), (2.0, 1.25), rtol=1e-6)
    mean, _ = OWN["window"].estimate(follow(OWN["window"], batches[:2]))
    np.testing.assert_allclose(mean[0], 50.5, rtol=1e-6)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    ("count", "mean", "var"),
    [(0, 0, 0), (1, 7, 0), (5, np.nan, 1), (5, 1, np.inf), (5, -np.inf, 1)],
)
def test_a_batch_that_says_nothing_changes_nothing(name, count, mean, var):
    for before in ([], [moments(5, 7.0, 8.0)]):
        state = follow(OWN[name], before)
        new = OWN[name].update(state, moments(count, mean, var))
        chex.assert_trees_all_equal(new, state)


@pytest.mark.parametrize("name", OWN)
def test_each_channel_for_itself(name):
    both = jaxbn.Moments(jnp.array([5.0, 1.0]), jnp.array([2.0, 2.0]), jnp.ones(2))
    after = follow(OWN[name], [both, both], shape=2)
    alone = follow(OWN[name], [moments(5, 2.0, 1.0)] * 2)
    start = OWN[name].init(2, jnp.float32)
    for leaf, one, first in zip(after, alone, start, strict=True):
        np.testing.assert_array_equal(leaf[:1], one)
        np.testing.assert_array_equal(leaf[1], first[1])


@pytest.mark.parametrize("name", OWN)
def test_scan_jit_and_no_gradient(name):
    estimator = OWN[name]

    @jax.jit
    def scanned(x):
        def body(state, x):
            return estimator.update(state, jaxbn.batch_moments(x)), None

        return jax.lax.scan(body, estimator.init(2, jnp.float32), x)[0]

    state = scanned(X)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, estimator.init(2, jnp.float32))
    expected = follow(estimator, [jaxbn.batch_moments(x) for x in X], shape=2)
    chex.assert_trees_all_close(state, expected, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(estimator.estimate(scanned(x)).mean))(X)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", OWN)
def test_nothing_overflows_or_becomes_negative(name):
    largest = np.finfo(np.float32).max
    batches = [moments(1e6, sign * largest, largest / 2) for sign in (1, -1, 1, 1)]
    mean, var = OWN[name].estimate(follow(OWN[name], batches))
    assert np.all(np.isfinite(mean))
    assert np.all(np.isfinite(var) & (var >= 0))


def test_weights_of_half_precision_statistics_go_on_counting():
    state = OWN["cumulative"].init(1, jnp.bfloat16)
    assert state.mean.dtype == jnp.bfloat16
    one = moments(5, 1.0, 1.0)
    update = lambda _, state: OWN["cumulative"].update(state, one)  # noqa: E731
    state = jax.lax.fori_loop(0, 400, update, state)
    assert float(state.weight[0]) == 400
