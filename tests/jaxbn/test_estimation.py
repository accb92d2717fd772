"""Estimators by name and by themselves, in the function and in both layers."""

import dataclasses
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn import estimators

BATCHES = 3 + np.random.default_rng(0).standard_normal((5, 8, 2)).astype(np.float32)
OTHERS = ("debiased", "cumulative", "window")


def by_hand(name, momentum=0.9):
    """Averages of means and of unbiased variances, in float64."""
    x = BATCHES.astype(np.float64)
    if name == "debiased":
        weights = momentum ** np.arange(len(x) - 1, -1, -1)
    else:
        weights = np.ones(len(x))
    weights = weights[:, None] / weights.sum()
    return (weights * x.mean(1)).sum(0), (weights * x.var(1, ddof=1)).sum(0)


def function(name):
    estimator = estimators.named(name, 0.9, True)
    state = estimator.init(2, jnp.float32)
    for x in BATCHES:
        _, state = jaxbn.batch_norm_train(
            x, None, None, state, estimator=name, momentum=0.9
        )
    y = jaxbn.batch_norm_inference(BATCHES[0], None, None, estimator.estimate(state))
    return state._asdict(), y


def linen(name):
    layer = jaxbn.linen.BatchNorm(momentum=0.9, estimator=name)
    variables = layer.init(jax.random.key(0), BATCHES[0], use_running_average=True)
    for x in BATCHES:
        _, updates = layer.apply(
            variables, x, use_running_average=False, mutable=["batch_stats"]
        )
        variables |= updates
    y = layer.apply(variables, BATCHES[0], use_running_average=True)
    return variables["batch_stats"], y


def in_nnx(name):
    layer = jaxbn.nnx.BatchNorm(2, momentum=0.9, estimator=name, rngs=nnx.Rngs(0))
    for x in BATCHES:
        layer(x)
    layer.eval()
    state = nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))
    return state, layer(BATCHES[0])


@pytest.mark.parametrize("name", OTHERS)
def test_function_and_layers_agree(name):
    stats, y = function(name)
    for other in (linen, in_nnx):
        other_stats, other_y = other(name)
        assert set(other_stats) == set(stats)
        chex.assert_trees_all_equal(dict(other_stats), dict(stats))
        np.testing.assert_array_equal(other_y, y)
    mean, var = by_hand(name)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    expected = (BATCHES[0] - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_only_the_default_keeps_no_more_than_flax():
    kept = {name: set(linen(name)[0]) for name in estimators.NAMES}
    assert kept["ema"] == {"mean", "var"}
    for name in OTHERS:
        assert kept[name] > {"mean", "var"}


@pytest.mark.parametrize("name", OTHERS)
def test_flax_takes_the_estimate_from_the_checkpoint(name):
    stats, y = linen(name)
    flax = nn.BatchNorm(use_running_average=True)
    shared = {"mean": stats["mean"], "var": stats["var"]}
    params = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
    theirs = flax.apply({"params": params, "batch_stats": shared}, BATCHES[0])
    np.testing.assert_allclose(theirs, y, atol=1e-6)


@pytest.mark.parametrize("name", estimators.NAMES)
def test_reset(name):
    layer = jaxbn.linen.BatchNorm(False, estimator=name)
    fresh = layer.init(jax.random.key(0), BATCHES[0])
    _, used = layer.apply(fresh, BATCHES[0], mutable=["batch_stats"])
    tree = {"net": {"bn": used["batch_stats"]}, "step": jnp.array(7)}
    reset = jaxbn.reset_batch_stats(tree)
    chex.assert_trees_all_equal(reset["net"]["bn"], fresh["batch_stats"])
    assert int(reset["step"]) == 7
    state = nnx.state(jaxbn.nnx.BatchNorm(2, estimator=name, rngs=nnx.Rngs(0)))
    chex.assert_trees_all_equal(
        jaxbn.reset_batch_stats({"bn": state})["bn"]["mean"], state["mean"]
    )


def test_an_estimator_with_settings_of_its_own():
    layer = jaxbn.linen.BatchNorm(False, estimator=estimators.window(2))
    variables = layer.init(jax.random.key(0), BATCHES[0])
    for x in BATCHES:
        _, updates = layer.apply(variables, x, mutable=["batch_stats"])
        variables |= updates
    last = BATCHES[-2:].astype(np.float64)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], last.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(stats["var"], last.var(1, ddof=1).mean(0), rtol=1e-5)


def test_state_of_complex_input():
    layer = jaxbn.linen.BatchNorm(False, estimator="debiased")
    x = BATCHES[0] + 1j * BATCHES[1]
    variables = layer.init(jax.random.key(0), x)
    _, updates = layer.apply(variables, x, mutable=["batch_stats"])
    stats = updates["batch_stats"]
    chex.assert_trees_all_equal_dtypes(stats, variables["batch_stats"])
    np.testing.assert_allclose(stats["mean"], x.mean(0), rtol=1e-5)


class NoPair(NamedTuple):
    sums: jax.Array


@dataclasses.dataclass(frozen=True)
class Strange:
    def init(self, shape, dtype):
        return NoPair(jnp.zeros(shape))

    def update(self, state, moments):
        return state

    def estimate(self, state):
        return jaxbn.BatchStats(state.sums, state.sums)


def test_errors():
    state = jaxbn.init_batch_stats(2)
    train = lambda **options: jaxbn.batch_norm_train(  # noqa: E731
        BATCHES[0], None, None, state, **options
    )
    with pytest.raises(ValueError, match=r"`estimator` must be one of .* got 'mean'"):
        train(estimator="mean")
    with pytest.raises(TypeError, match=r"`estimator` must be one of .* got 0\.9"):
        train(estimator=0.9)
    with pytest.raises(TypeError, match=r"`batch_stats` must be a `Weighted`.*BatchSt"):
        train(estimator="cumulative")
    with pytest.raises(ValueError, match=r"`momentum` .* got 2"):
        train(estimator="debiased", momentum=2)
    with pytest.raises(ValueError, match="`batches` must be at least 1, got 0"):
        estimators.window(0)
    with pytest.raises(TypeError, match=r"`estimator` must be one of .* got <class"):
        train(estimator=Strange)
    strange = Strange()
    with pytest.raises(TypeError, match=r"`NamedTuple` with the fields .* got NoPair"):
        jaxbn.linen.BatchNorm(False, estimator=strange).init(
            jax.random.key(0), BATCHES[0]
        )
    with pytest.raises(ValueError, match=r"`estimator` must be one of .* got 'mean'"):
        jaxbn.nnx.BatchNorm(2, estimator="mean", rngs=nnx.Rngs(0))
