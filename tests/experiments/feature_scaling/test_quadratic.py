"""Steps that are computed, against steps that are made."""

import numpy as np
import pytest

from experiments.feature_scaling import quadratic

RNG = np.random.default_rng(0)
X = RNG.normal(1.0, (1.0, 3.0), (50, 2))
Y = (X @ [[1.0, 0.5], [-0.2, 1.0]]) + RNG.normal(size=(50, 2))


def descent(steps):
    """The loss after each step of gradient descent, float64."""
    inputs = np.concatenate([X, np.ones((50, 1))], 1)
    hessian = inputs.T @ inputs / 50
    rate = 1 / np.linalg.eigvalsh(hessian)[-1]
    w, losses = np.zeros((3, 2)), []
    for _ in range(steps + 1):
        losses.append(np.sum((inputs @ w - Y) ** 2))
        w = w - rate * inputs.T @ (inputs @ w - Y) / 50
    best = np.linalg.lstsq(inputs, Y)[0]
    lowest = np.sum((inputs @ best - Y) ** 2)
    return (np.array(losses) - lowest) / (losses[0] - lowest)


def test_condition_number():
    inputs = np.concatenate([X, np.ones((50, 1))], 1)
    expected = np.linalg.cond(inputs) ** 2
    found = quadratic.condition_number(quadratic.spectrum(X, Y))
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_excess_is_that_of_gradient_descent():
    found = quadratic.spectrum(X, Y)
    excess = [quadratic.excess_after(found, step) for step in range(30)]
    np.testing.assert_allclose(excess, descent(29), rtol=1e-6)


@pytest.mark.parametrize("tolerance", [0.5, 0.01, 1e-4])
def test_steps_to_a_loss(tolerance):
    losses = descent(2000)
    expected = int(np.flatnonzero(losses <= tolerance)[0])
    assert quadratic.steps_to(quadratic.spectrum(X, Y), tolerance) == expected


def test_a_feature_that_does_not_vary_is_left_out():
    more = np.concatenate([X, np.full((50, 1), 7.0)], 1)
    found = quadratic.spectrum(more, Y)
    assert len(found.eigenvalues) == 3
    assert np.isfinite(quadratic.condition_number(found))


def test_the_bowl():
    y = Y[:, 0]
    found = quadratic.bowl(X, y, steps=400)
    inputs = np.concatenate([X, np.ones((50, 1))], 1)
    best = np.linalg.lstsq(inputs, y)[0][:2]
    np.testing.assert_allclose(found.optimum, best, rtol=1e-8)
    assert found.path.shape == (401, 2)
    np.testing.assert_array_equal(found.path[0], 0)
    np.testing.assert_allclose(found.path[-1], best, rtol=1e-6)
    distances = np.linalg.norm(found.path - best, axis=1)
    assert np.all(np.diff(distances) <= 1e-12)
