"""Batches of unequal size, with channels that do not count in all of them."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn.core import running
from jaxbn.population import pooling as pooling_lib

RNG = np.random.default_rng(0)
PARTS = [(5 + 3 * RNG.standard_normal((n, 2))).astype(np.float32) for n in (6, 9, 2)]
OLD = running.BatchStats(jnp.full(2, 7.0), jnp.full(2, 8.0))


def of(pooling, parts, masks=None):
    masks = masks or [None] * len(parts)
    total = jaxbn.Moments(*(jnp.zeros(2),) * 4)
    for part, mask in zip(parts, masks, strict=True):
        total = pooling_lib.add(pooling, total, jaxbn.batch_moments(part, mask=mask))
    return pooling_lib.population(pooling, OLD, total)


def test_mean_of_unbiased_variances():
    stats = of("mean", PARTS)
    sizes = np.array([6.0, 9.0, 2.0])
    mean = np.average([p.astype(float).mean(0) for p in PARTS], 0, sizes)
    var = np.average([p.astype(float).var(0, ddof=1) for p in PARTS], 0, sizes)
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(stats.var, var, rtol=1e-5)


def test_pooled_is_that_of_all_examples():
    stats, every = of("pooled", PARTS), np.concatenate(PARTS).astype(float)
    np.testing.assert_allclose(stats.mean, every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats.var, every.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "pooled"])
def test_channels_that_are_not_finite_or_empty(pooling):
    broken = PARTS[1].copy()
    broken[0, 0] = np.inf
    masks = [None, np.array([[True, False]]), None]
    stats = of(pooling, [PARTS[0], broken, PARTS[2]], masks)
    expected = of(pooling, [PARTS[0], PARTS[2]])
    for actual, right in zip(stats, expected, strict=True):
        np.testing.assert_array_equal(actual, right)
    nothing = of(pooling, [broken], [np.array([[True, False]])])
    assert nothing.mean.tolist() == [7, 7]
    assert nothing.var.tolist() == [8, 8]


def test_one_value_has_no_variance_of_its_own():
    single = of("mean", [PARTS[0], PARTS[1][:1]])
    for actual, right in zip(single, of("mean", PARTS[:1]), strict=True):
        np.testing.assert_array_equal(actual, right)
    pooled = of("pooled", [PARTS[0], PARTS[1][:1]])
    both = np.concatenate([PARTS[0], PARTS[1][:1]])
    np.testing.assert_allclose(pooled.var, both.var(0, ddof=1), rtol=1e-5)
