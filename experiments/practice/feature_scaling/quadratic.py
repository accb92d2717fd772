"""Computes gradient descent on least squares exactly.

The loss of a linear model is quadratic. The mean squared error of `x @ w + b` is
minimised from zero with the learning rate `1 / largest eigenvalue of the Hessian`. In
the basis of the singular vectors of the inputs, every step multiplies the error by
`1 - eigenvalue / largest`. So the number of steps to any accuracy is known without
running them.
"""

from typing import NamedTuple

import numpy as np


class Spectrum(NamedTuple):
    """A least-squares problem in the basis in which its Hessian is diagonal."""

    eigenvalues: np.ndarray  # The positive eigenvalues, in falling order.
    excess: np.ndarray  # The share of each direction in the loss at zero.


def spectrum(x: np.ndarray, y: np.ndarray) -> Spectrum:
    """Returns the problem of fitting `x @ w + b` to `y`.

    `x` is `[N, features]` and `y` is `[N, outputs]`. Directions in which the inputs do
    not vary are left out.
    """
    inputs = np.concatenate([x, np.ones((len(x), 1))], 1)
    u, singular, _ = np.linalg.svd(inputs, full_matrices=False)
    kept = singular > singular[0] * len(x) * np.finfo(np.float64).eps
    parts = np.sum((u[:, kept].T @ y) ** 2, 1)
    return Spectrum(singular[kept] ** 2 / len(x), parts / parts.sum())


def condition_number(found: Spectrum) -> float:
    """Returns the largest eigenvalue divided by the smallest."""
    return float(found.eigenvalues[0] / found.eigenvalues[-1])


def excess_after(found: Spectrum, steps: float) -> float:
    """Returns the excess loss after `steps` steps, divided by that at the start.

    The excess loss is the loss above its minimum.
    """
    share = found.eigenvalues / found.eigenvalues[0]
    # The error of the first direction is 0 after one step.
    with np.errstate(divide="ignore"):
        logs = np.log1p(-share)
    factors = np.exp(2 * steps * logs) if steps else np.ones_like(share)
    return float(np.sum(found.excess * factors))


def steps_to(found: Spectrum, tolerance: float) -> int:
    """Returns the number of steps until `excess_after` is at most `tolerance`.

    Args:
      found: the spectrum of the problem.
      tolerance: the excess loss to reach, in (0, 1).
    """
    high = 1
    while excess_after(found, high) > tolerance:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if excess_after(found, middle) > tolerance:
            low = middle
        else:
            high = middle
    return high


class Bowl(NamedTuple):
    """A loss as a function of two weights, with the best bias, and a descent on it."""

    hessian: np.ndarray  # [2, 2]
    optimum: np.ndarray  # [2]
    path: np.ndarray  # [steps + 1, 2]; starts at zero.


def bowl(x: np.ndarray, y: np.ndarray, steps: int) -> Bowl:
    """Returns the loss and the descent of two features `[N, 2]` and an output `[N]`."""
    centred = x - x.mean(0)
    hessian = centred.T @ centred / len(x)
    slope = centred.T @ (y - y.mean()) / len(x)
    optimum = np.linalg.solve(hessian, slope)
    rate = 1 / np.linalg.eigvalsh(hessian)[-1]
    path = [np.zeros(2)]
    for _ in range(steps):
        path.append(path[-1] - rate * (hessian @ (path[-1] - optimum)))
    return Bowl(hessian, optimum, np.stack(path))
