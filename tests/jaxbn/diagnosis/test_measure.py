"""One call in numbers, against float64 NumPy; masks and complex inputs too."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn.core import running
from jaxbn.diagnosis import calls, measure

RNG = np.random.default_rng(0)
X = (1 + 2 * RNG.standard_normal((64, 3))).astype(np.float32)
MASK = RNG.random((64, 3)) < 0.7
STATS = running.BatchStats(jnp.array([0.0, 1.0, 4.0]), jnp.array([1.0, 9.0, 4.0]))


def of(x=X, mask=None, stats=STATS, scale=None, bias=None, axis=-1):
    options = {"axis": axis, "epsilon": 1e-5}
    return measure.of_call(
        calls.Given("bn", 1, x, mask, stats, scale=scale, bias=bias, **options)
    )


def test_masked_elements_count_nothing():
    """Each channel has a mask of its own, and rubbish where it is False."""
    scale, bias = np.array([0.0, 2.0, 3.0]), np.array([0.0, -1.0, 1.0])
    row = of(np.where(MASK, X, np.inf), MASK, scale=scale, bias=bias)
    assert row.elements == MASK.sum(0).min()
    distances, ratios, shifts = [], [], []
    for c in range(3):
        x = X[MASK[:, c], c].astype(np.float64)
        mean, var = (float(part[c]) for part in STATS)
        distances.append(abs(x.mean() - mean) / np.sqrt(var + 1e-5))
        ratios.append((x.var() + 1e-5) / (var + 1e-5))
        trained = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        shifts.append(scale[c] * (trained - (x - mean) / np.sqrt(var + 1e-5)))
    # The moments are float32.
    np.testing.assert_allclose(row.mean_distances, distances, rtol=1e-5)
    np.testing.assert_allclose(row.variance_ratios, ratios, rtol=1e-5)
    assert row.mean_distance == pytest.approx(max(distances), rel=1e-5)
    assert row.variance_ratio == pytest.approx(max(*ratios, *np.divide(1, ratios)))
    shift = np.sqrt(np.mean(np.concatenate(shifts) ** 2))
    assert row.output_shift == pytest.approx(shift, rel=1e-5)


def test_a_channel_without_elements_says_nothing():
    mask = MASK.copy()
    mask[:, 2] = False
    row = of(X, mask)
    assert row.elements == 0
    assert np.isnan(row.mean_distances[2])
    assert np.isnan(row.variance_ratios[2])
    assert row.mean_distance == np.max(row.mean_distances[:2])
    assert (row.dead, row.negative, row.saturated, row.ill_conditioned) == (0,) * 4
    nothing = of(X, np.zeros_like(MASK))
    assert nothing.mean_distance == 0
    assert nothing.variance_ratio == 1
    assert nothing.output_shift == 0
    assert len(nothing.advice) == 1  # That there are few elements.


def test_masked_elements_hide_no_finding():
    """A channel is constant where it counts, saturated where it counts."""
    mask = np.arange(64)[:, None] < 40
    x = X.copy()
    x[:40, 0] = 3.0
    scale = np.array([1.0, 99.0, 1.0])
    row = of(x, np.broadcast_to(mask, x.shape), scale=scale, bias=np.full(3, -0.0))
    assert row.dead == 1
    assert row.negative == 1  # The constant one is 0.
    assert row.saturated == 1


def test_channels_on_several_axes():
    x = X.reshape(16, 3, 4)[:, :, :2]
    stats = running.BatchStats(np.zeros((3, 2)), np.ones((3, 2)))
    row = of(x, axis=(2, 1), stats=stats)
    assert (row.channels, row.elements) == (6, 16)
    expected = np.abs(x.astype(np.float64).mean(0)).ravel()
    np.testing.assert_allclose(row.mean_distances, expected, rtol=1e-4)


def test_complex_inputs():
    x = (X + 1j * X[::-1]).astype(np.complex64)
    stats = running.BatchStats(jnp.zeros(3, jnp.complex64), jnp.ones(3))
    row = of(x, stats=stats)
    x = x.astype(np.complex128)
    expected = np.abs(x.mean(0)) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(row.mean_distances, expected, rtol=1e-5)
    np.testing.assert_allclose(row.variance_ratios, x.var(0), rtol=1e-4)


def test_labels():
    row = of()
    assert row.label == "bn"
    assert row._replace(call=2).label == "bn (call 2)"


def test_one_element_gives_no_advice_but_to_give_more():
    row = of(X[:1] + 100)
    assert row.advice == ("1 elements per channel tell nothing: give a larger batch",)
