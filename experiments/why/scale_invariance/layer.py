"""Compares a layer with scaled weights in float32 with the paper's formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn

FACTORS = tuple(10.0**power for power in range(-3, 4))
QUANTITIES = ("y", "du", "dw")


def errors(factor: float, epsilon: float) -> dict[str, float]:
    """Returns the errors of a layer with weights `factor * W` against Section 3.3.

    Output and gradient with respect to the input must be those of `W`. `factor` times
    the gradient with respect to the weights must be the gradient with respect to `W`.
    The expected values are computed in float64 from `W` itself, with an epsilon of 0.
    An error is the root mean square of the differences, divided by that of the expected
    values.
    """
    u, w, dy = _arrays()
    expected = reference(u, w, dy)

    def layer(u: jax.Array, w: jax.Array) -> jax.Array:
        units = w.shape[-1]
        stats = jaxbn.BatchStats(jnp.zeros(units), jnp.ones(units))
        scale, bias = jnp.ones(units), jnp.zeros(units)
        return jaxbn.batch_norm_train(u @ w, scale, bias, stats, epsilon=epsilon)[0]

    y, vjp = jax.vjp(layer, jnp.float32(u), jnp.float32(factor * w))
    du, dw = vjp(jnp.float32(dy))
    found: dict[str, Any] = {"y": y, "du": du, "dw": factor * np.float64(dw)}
    return {
        name: _rms(found[name] - truth) / _rms(truth)
        for name, truth in zip(QUANTITIES, expected, strict=True)
    }


def reference(
    u: np.ndarray, w: np.ndarray, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns output and gradients by the paper's formulas, with an epsilon of 0.

    The formulas are those of Algorithm 1.
    """
    x = u @ w
    std = x.std(0)
    y = (x - x.mean(0)) / std
    dx = (dy - dy.mean(0) - y * (dy * y).mean(0)) / std
    return y, dx @ w.T, u.T @ dx


def _arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    u, w = rng.standard_normal((60, 100)), rng.standard_normal((100, 100)) / 10
    return u, w, rng.standard_normal((60, 100))


def _rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.float64(values)))))
