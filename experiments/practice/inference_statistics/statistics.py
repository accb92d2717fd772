"""Estimates the statistics of a training side by side, and their distance to the truth.

The layers of the network have a momentum of 0 and no factor m / (m - 1), so that its
`batch_stats` are those of the last mini-batch. All estimators are updated with them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import jaxbn
from jaxbn import estimators

Stats = Mapping[str, Mapping[str, jax.Array]]  # `mean` and `var` of each layer.
Estimates = Mapping[str, Mapping[str, Any]]  # The state of each estimator and layer.


def all_estimators(momentum: float, window: int) -> dict[str, estimators.Estimator]:
    """Returns the four estimators of jaxbn, and Flax's exponential average."""
    return {
        "ema": estimators.ema(momentum),
        "ema, biased": estimators.ema(momentum, unbiased=False),
        "debiased": estimators.debiased(momentum),
        "window": estimators.window(window),
        "cumulative": estimators.cumulative(),
    }


def init(followed: Mapping[str, estimators.Estimator], stats: Stats) -> Estimates:
    """Returns the initial state of every estimator for the layers in `stats`."""
    return {
        name: {
            layer: estimator.init(each["mean"].shape, each["mean"].dtype)
            for layer, each in stats.items()
        }
        for name, estimator in followed.items()
    }


def update(
    followed: Mapping[str, estimators.Estimator],
    states: Estimates,
    stats: Stats,
    batch_size: int,
) -> Estimates:
    """Returns the states after a batch with the biased statistics `stats`."""

    def moments(layer: str) -> jaxbn.Moments:
        mean, var = stats[layer]["mean"], stats[layer]["var"]
        return jaxbn.Moments(jnp.full_like(mean, batch_size), mean, var)

    return {
        name: {
            layer: estimator.update(state, moments(layer))
            for layer, state in states[name].items()
        }
        for name, estimator in followed.items()
    }


def estimate(states: Estimates) -> dict[str, Stats]:
    """Returns the estimate of each estimator, as `batch_stats` of the network."""
    return {
        name: {
            layer: {"mean": state.mean, "var": state.var}
            for layer, state in layers.items()
        }
        for name, layers in states.items()
    }


def distances(found: Stats, truth: Stats) -> dict[str, jax.Array]:
    """Returns the distances of statistics from the truth.

    Returns:
      Three arrays `[layers]`. `mean` is the root mean square over units of the error of
      the mean, in standard deviations of the unit. `var` is the root mean square of the
      logarithm of the ratio of the variances. `ratio` is the mean of that ratio.
    """
    rows = [_of_layer(found[layer], truth[layer]) for layer in sorted(truth)]
    return {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}


def _of_layer(
    found: Mapping[str, jax.Array], truth: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    error = (found["mean"] - truth["mean"]) / jnp.sqrt(truth["var"])
    ratio = found["var"] / truth["var"]
    return {
        "mean": _rms(error),
        "var": _rms(jnp.log(ratio)),
        "ratio": jnp.mean(ratio),
    }


def _rms(values: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(values)))
