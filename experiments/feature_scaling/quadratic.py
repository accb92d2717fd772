"""Gradient descent on least squares, exactly: of linear models the loss is quadratic.

The mean squared error of `x @ w + b` is minimised from zero with the learning rate
`1 / largest eigenvalue of the Hessian`. In the basis of the singular vectors of the
inputs every step multiplies the error by `1 - eigenvalue / largest`, so that the number
of steps to any accuracy is known without making them.
"""

from typing import NamedTuple

import numpy as np


class Spectrum(NamedTuple):
    """A least-squares problem in the basis in which its Hessian is diagonal."""

    eigenvalues: np.ndarray  # Of the Hessian, falling, all positive.
    excess: np.ndarray  # Share of the loss at zero that each direction holds.


def spectrum(x: np.ndarray, y: np.ndarray) -> Spectrum:
    """Of `x @ w + b`, where `x` is `[N, features]` and `y` is `[N, outputs]`.

    Directions in which the inputs do not vary are left out.
    """
    inputs = np.concatenate([x, np.ones((len(x), 1))], 1)
    u, singular, _ = np.linalg.svd(inputs, full_matrices=False)
    kept = singular > singular[0] * len(x) * np.finfo(np.float64).eps
    parts = np.sum((u[:, kept].T @ y) ** 2, 1)
    return Spectrum(singular[kept] ** 2 / len(x), parts / parts.sum())


def condition_number(found: Spectrum) -> float:
    """The largest eigenvalue over the smallest."""
    return float(found.eigenvalues[0] / found.eigenvalues[-1])


def excess_after(found: Spectrum, steps: float) -> float:
    """The loss above its minimum after so many steps, over that at the start."""
    share = found.eigenvalues / found.eigenvalues[0]
    with np.errstate(divide="ignore"):  # The first direction is done after one step.
        logs = np.log1p(-share)
    factors = np.exp(2 * steps * logs) if steps else np.ones_like(share)
    return float(np.sum(found.excess * factors))


def steps_to(found: Spectrum, tolerance: float) -> int:
    """The first step after which `excess_after` is at most `tolerance`.

    Args:
      found: of the problem.
      tolerance: in (0, 1).
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
    """The loss over two weights, the bias at its best, and a descent on it."""

    hessian: np.ndarray  # [2, 2]
    optimum: np.ndarray  # [2]
    path: np.ndarray  # [steps + 1, 2]; from zero.


def bowl(x: np.ndarray, y: np.ndarray, steps: int) -> Bowl:
    """Of two features `[N, 2]` and one output `[N]`."""
    centred = x - x.mean(0)
    hessian = centred.T @ centred / len(x)
    slope = centred.T @ (y - y.mean()) / len(x)
    optimum = np.linalg.solve(hessian, slope)
    rate = 1 / np.linalg.eigvalsh(hessian)[-1]
    path = [np.zeros(2)]
    for _ in range(steps):
        path.append(path[-1] - rate * (hessian @ (path[-1] - optimum)))
    return Bowl(hessian, optimum, np.stack(path))
