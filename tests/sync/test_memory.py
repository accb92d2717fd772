"""Sums and memories of several workers against the pooled values in float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn._core import moments
from jaxbn.sync import _stale

RNG = np.random.default_rng(0)
WORKERS, CHANNELS = 4, 3
SIZES = (5, 0, 7, 2)


def values(mean):
    return [mean + RNG.standard_normal((n, CHANNELS)) for n in SIZES]


def moments_of(parts):
    """Returns the moments of all workers, `[workers, C]`.

    An empty worker has the mean 9, which must not affect any result.
    """
    made = [
        (len(p), p.mean(0), p.var(0)) if len(p) else (0, np.full(3, 9.0), np.zeros(3))
        for p in parts
    ]
    count, mean, var = (np.stack(part) for part in zip(*made, strict=True))
    count = np.broadcast_to(count[:, None], mean.shape)
    return moments.Moments(*(jnp.asarray(p, jnp.float32) for p in (count, mean, var)))


def total(sums):
    return _stale.Sums(*(jnp.sum(part, 0, keepdims=True) for part in sums))


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e4])
def test_sums_about_a_centre_near_the_mean(mean):
    parts = values(mean)
    center = jnp.full((1, CHANNELS), mean + 0.5, jnp.float32)
    sums = total(_stale.sums_of(moments_of(parts), center))
    made = _stale.moments_of(sums, center)
    whole = np.concatenate(parts)
    np.testing.assert_array_equal(made.count[0], np.full(CHANNELS, len(whole)))
    # A float32 mean of 1e4 is known to 5e-4, which the variance of each part sees.
    np.testing.assert_allclose(made.mean[0], whole.mean(0), atol=1e-6 + 1e-7 * mean)
    np.testing.assert_allclose(made.var[0], whole.var(0), rtol=1e-5 + 1e-7 * mean)
    assert np.all(_stale.is_accurate(sums, center))


def test_far_from_the_centre_is_not_accurate():
    mine = moments_of(values(100.0))
    for center, expected in ((0.0, False), (50.0, False), (90.0, True), (100.0, True)):
        center = jnp.full((1, CHANNELS), center, jnp.float32)
        sums = total(_stale.sums_of(mine, center))
        assert np.all(_stale.is_accurate(sums, center) == expected), center


def test_a_constant_channel_is_accurate_at_its_value():
    ones = jnp.ones((1, 1))
    mine = moments.Moments(4 * ones, 0.1 * ones, 0 * ones, 0 * ones)
    for center, expected in ((0.1, True), (0.1 * (1 + 1e-7), True), (0.2, False)):
        center = center * ones
        assert (
            bool(_stale.is_accurate(_stale.sums_of(mine, center), center)) == expected
        )


def memory_of(parts, gradient):
    count, mean, var, _ = moments_of(parts)
    gradient = jnp.asarray(gradient, jnp.float32)
    return _stale.Memory(count, mean, var, gradient, 2 * gradient)


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_the_memory_of_the_other_workers(mean):
    parts, sums = values(mean), RNG.standard_normal((WORKERS, CHANNELS))
    own = memory_of(parts, sums)
    everyone = memory_of([np.concatenate(parts)], sums.sum(0, keepdims=True))
    made = _stale.without(everyone, own)
    for worker in range(WORKERS):
        others = np.concatenate([p for i, p in enumerate(parts) if i != worker])
        np.testing.assert_array_equal(made.count[worker], np.full(3, len(others)))
        tolerance = 1e-5 + 1e-6 * mean
        np.testing.assert_allclose(made.mean[worker], others.mean(0), atol=tolerance)
        np.testing.assert_allclose(made.var[worker], others.var(0), rtol=tolerance)
        expected = sums.sum(0) - sums[worker]
        np.testing.assert_allclose(made.gradient[worker], expected, atol=1e-5)
        np.testing.assert_allclose(made.product[worker], 2 * expected, atol=1e-5)


def test_without_other_workers():
    own = memory_of([RNG.standard_normal((5, CHANNELS))], np.ones((1, CHANNELS)))
    rounded = own._replace(count=own.count * (1 + 1e-6))
    for everyone in (own, rounded):
        for part in _stale.without(everyone, own):
            np.testing.assert_array_equal(part, np.zeros((1, CHANNELS)))


def test_memory_is_the_pooled_moments_of_decayed_steps():
    decay, center = 0.5, jnp.zeros((1, 1))
    memory = _stale.Memory(*(jnp.zeros((1, 1)),) * 5)
    steps = [RNG.standard_normal((n, 1)) for n in (4, 6, 3)]
    weight = 0.0
    for index, step in enumerate(steps):
        sums = _stale.sums_of(
            moments.Moments(
                *(jnp.full((1, 1), v) for v in (len(step), step.mean(), step.var()))
            ),
            center,
        )
        sums = sums._replace(gradient=jnp.full((1, 1), 1.0 + index))
        weight = decay * weight + 1
        memory = _stale.with_step(memory, sums, center, decay, 1 / weight)
    weights = decay ** np.array([2.0, 1.0, 0.0])
    repeated = np.repeat(weights, [len(step) for step in steps])
    x = np.concatenate(steps)[:, 0]
    mean = np.average(x, weights=repeated)
    np.testing.assert_allclose(memory.count[0, 0], repeated.sum(), rtol=1e-6)
    np.testing.assert_allclose(memory.mean[0, 0], mean, rtol=1e-5)
    expected = np.average((x - mean) ** 2, weights=repeated)
    np.testing.assert_allclose(memory.var[0, 0], expected, rtol=1e-5)
    expected = np.average([1.0, 2.0, 3.0], weights=weights)
    np.testing.assert_allclose(memory.gradient[0, 0], expected, rtol=1e-6)


def test_the_rounding_of_a_mean_is_not_lost():
    one = jnp.ones((1, 1))
    mine = moments.Moments(4 * one, 1e4 * one, one, 3e-4 * one)
    sums = _stale.sums_of(mine, 1e4 * one)
    np.testing.assert_allclose(sums.offset, 4 * 3e-4, rtol=1e-6)
