"""Random batches of every magnitude: finite in, finite out, and right where it can be.

`JAXBN_BATCHES=100000 python -m pytest tests/test_random_batches.py` takes longer.
"""

import functools
import os

import jax
import numpy as np
import pytest

import jaxbn
from tests import reference

BATCHES = int(os.environ.get("JAXBN_BATCHES", "200"))
SCALE, BIAS = np.float32([3, -0.5]), np.float32([0.25, -1])
TINY, HUGE = 1e-15, 1e18  # Squares of values between them are normal floats.


def make_batches(shape, seed):
    """Normal, constant and two-valued channels, from 1e-30 to 3e38, near 0 or not."""
    rng = np.random.default_rng(seed)
    size = (BATCHES, *(1 for _ in shape[:-1]), shape[-1])
    magnitude = 10 ** rng.uniform(-30, 38.4, size)
    ratio = 10 ** rng.uniform(-2, 6, size)
    kind = rng.integers(0, 4, size)
    noise = rng.standard_normal((BATCHES, *shape))
    outlier = (rng.random((BATCHES, *shape)) < 0.1).astype(float)
    values = np.select(
        [kind == 0, kind == 1, kind == 2],
        [1 + noise / ratio, np.ones_like(noise), 1 + outlier / ratio],
        noise,
    )
    return np.clip(values * magnitude, -3e38, 3e38).astype(np.float32)


def train(x, mask, residual, dy, **options):
    stats = jaxbn.init_batch_stats(2)

    def normalize(x, residual, scale, bias):
        return jaxbn.batch_norm_train(
            x, scale, bias, stats, mask=mask, residual=residual, momentum=0.0, **options
        )

    y, vjp, new = jax.vjp(normalize, x, residual, SCALE, BIAS, has_aux=True)
    return y, new, vjp(dy)


def run(x, mask, residual, dy, **options):
    """One after the other, so that conditionals stay conditionals."""

    def one(batch):
        return train(batch[0], mask, batch[1], batch[2], **options)

    return jax.tree.map(
        np.asarray, jax.jit(functools.partial(jax.lax.map, one))((x, residual, dy))
    )


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("activation", "epsilon", "group_size"),
    [("relu", 1e-5, None), ("gelu", 0.0, None), (None, 0.0, 4), ("silu", 1e-5, 4)],
)
def test_finite_batches(activation, epsilon, group_size):
    shape = (12, 3, 2)
    x = make_batches(shape, seed=0)
    residual, dy = np.random.default_rng(1).standard_normal((2, *x.shape), np.float32)
    options = {"activation": activation, "epsilon": epsilon, "group_size": group_size}
    y, stats, gradients = run(x, None, residual, dy, **options)
    assert np.all(np.isfinite(y))
    assert np.all(np.isfinite(stats.mean))
    assert np.all(np.isfinite(stats.var))
    assert np.all(stats.var >= 0)
    # The gradient of `x` is as large as `1 / std`, which may overflow.
    usual = np.abs(x).max((1, 2, 3)) < HUGE
    _, _, dscale, dbias = (g[usual] for g in gradients)
    assert np.all(np.isfinite(dscale))
    assert np.all(np.isfinite(dbias))


@pytest.mark.parametrize("group_size", [None, 2])
def test_moments_of_what_has_any(group_size):
    x = make_batches((12, 8, 2), seed=2)
    zeros = np.zeros_like(x)
    _, stats, _ = run(x, None, zeros, zeros, group_size=group_size, unbiased=False)
    checked = 0
    for batch, mean, var in zip(x, stats.mean, stats.var, strict=True):
        expected = reference.moments(batch)
        std = np.sqrt(expected.var)
        fits = (np.abs(batch).max((0, 1)) < HUGE) & (std > TINY)
        usual = fits & (np.abs(expected.mean) <= 1e4 * std)
        np.testing.assert_allclose(var[usual], expected.var[usual], rtol=1e-4)
        slack = 1e-6 * std + 2e-7 * np.abs(expected.mean)
        assert np.all((np.abs(mean - expected.mean) <= slack)[usual])
        checked += usual.sum()
    assert checked > BATCHES / 10


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("activation", "in_place"),
    [("relu", False), ("gelu", False), ("silu", False), ("leaky_relu", True)],
)
def test_content_outside_the_mask(activation, in_place):
    rng = np.random.default_rng(3)
    mask = np.arange(12)[:, None, None] % 3 > 0
    x, residual, dy = rng.standard_normal((3, BATCHES, 12, 3, 2), np.float32)
    hidden = [make_batches((12, 3, 2), seed) for seed in (4, 5)]
    for array in hidden:  # And what no batch of numbers holds.
        array[rng.random(array.shape) < 0.1] = np.nan
        array[rng.random(array.shape) < 0.1] = np.inf
    dy = np.where(mask, dy, 0)  # The loss leaves them out.
    options = {"activation": activation, "in_place": in_place}
    zeros = np.where(mask, x, 0), mask, np.where(mask, residual, 0), dy
    covered = (
        np.where(mask, x, hidden[0]),
        mask,
        np.where(mask, residual, hidden[1]),
        dy,
    )
    y, stats, gradients = run(*zeros, **options)
    y_covered, stats_covered, gradients_covered = run(*covered, **options)
    keep = np.broadcast_to(mask, y.shape)
    np.testing.assert_array_equal(y_covered[keep], y[keep])
    for a, b in zip(stats_covered, stats, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(gradients_covered, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
