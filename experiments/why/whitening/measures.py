"""Measures the cost of whitening, its variance with few examples and correlations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.framework import interleaved
from experiments.why.whitening import zca

NORMS = ("BN", "whitening")
_ROUNDS = 40


def normalise(norm: str, x: jax.Array) -> jax.Array:
    """Normalises `x`, `[N, C]`, by its own statistics."""
    if norm == "whitening":
        return zca.whiten(x)
    ones, zeros = jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1])
    stats = jaxbn.BatchStats(zeros, ones)
    return jaxbn.batch_norm_train(x, ones, zeros, stats, epsilon=zca.EPSILON)[0]


def cost(units: int, examples: int) -> dict[str, Any]:
    """Times output and gradient of both normalisations, which take turns.

    Returns:
      The milliseconds of each in its fastest round, which other programs disturb least,
      and the ratio of whitening to Batch Normalization.
    """
    x, dy = _normal((2, examples, units))
    programs = {}
    for norm in NORMS:

        def both(x: jax.Array, dy: jax.Array, norm: str = norm):
            y, vjp = jax.vjp(lambda x: normalise(norm, x), x)
            return y, vjp(dy)

        run = jax.jit(both)
        programs[norm] = lambda run=run: jax.block_until_ready(run(x, dy))
    taken = interleaved.seconds(programs, _ROUNDS)
    fastest = {norm: min(taken[norm]) for norm in NORMS}
    return {
        "units": units,
        "ms": {norm: float(f"{1e3 * fastest[norm]:.3g}") for norm in NORMS},
        "ratio": float(f"{fastest['whitening'] / fastest['BN']:.3g}"),
    }


def others(units: int, examples: int, batches: int = 20) -> dict[str, Any]:
    """Applies the statistics of few examples to others of the same distribution.

    Inputs are independent and standard normal. With `m` examples of `d` units, the
    whitened others have a mean variance of `m / (m - d - 2)`, without epsilon. Batch
    Normalization gives the same with `d = 1`.

    Returns:
      The `rank` of the covariance, and for both normalisations the mean `variance` of
      the others. The true statistics would give a variance of 1.
    """
    x = np.asarray(_normal((batches, examples, units)), np.float64)
    x = x - x.mean(1, keepdims=True)
    cov = np.einsum("bnc,bnd->bcd", x, x) / examples
    values = np.linalg.eigvalsh(cov)
    whitened = np.mean(1 / (np.maximum(values, 0) + zca.EPSILON))
    normalised = np.mean(1 / (np.square(x).mean(1) + zca.EPSILON))
    rank = (values > 1e-9 * values.max(-1, keepdims=True)).sum(-1)
    return {
        "examples": examples,
        "rank": int(rank.max()),
        "variance": {
            "BN": float(f"{normalised:.4g}"),
            "whitening": float(f"{whitened:.4g}"),
        },
    }


def correlations(x: np.ndarray) -> dict[str, float]:
    """Returns the mean absolute correlation of two units, without and with each norm.

    Args:
      x: the values of the units, `[N, C]`.
    """
    given = jnp.asarray(x, jnp.float32)
    made = {"none": given} | {norm: normalise(norm, given) for norm in NORMS}
    return {name: _correlation(np.float64(y)) for name, y in made.items()}


def _correlation(y: np.ndarray) -> float:
    matrix = np.corrcoef(y, rowvar=False)
    off = ~np.eye(len(matrix), dtype=bool)
    return float(f"{np.abs(matrix[off]).mean():.3g}")


def _normal(shape: tuple[int, ...]) -> jax.Array:
    values = np.random.default_rng(0).standard_normal(shape)
    return jnp.asarray(values, jnp.float32)
