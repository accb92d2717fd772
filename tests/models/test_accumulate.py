"""Several passes of an NNX model before one update, as by Linen's collection."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from jaxbn import linen

X = 3 + np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
PARTS = (X[:2], X[2:9], X[9:])
OPTIONS = {
    "twice": {"momentum": 0.5},
    "other": {"estimator": "debiased"},
    "window": {"estimator": "window"},
    "frozen": {"use_running_average": True, "update_running_average": False},
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        def norm(name):
            options = {"use_running_average": False} | OPTIONS[name]
            return linen.BatchNorm(name=name, **options)

        twice = norm("twice")
        x = norm("other")(twice(2 * twice(x) + 1))
        return norm("frozen")(norm("window")(x**2))


class Model(nnx.Module):
    """`Net` as an NNX model."""

    def __init__(self):
        for name, options in OPTIONS.items():
            norm = jaxbn.nnx.BatchNorm(4, rngs=nnx.Rngs(0), **options)
            setattr(self, name, norm)

    def __call__(self, x):
        x = self.other(self.twice(2 * self.twice(x) + 1))
        return self.frozen(self.window(x**2))


def stats_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def trained():
    """Returns a model after one call, and the variables of the equal Linen model."""
    model = Model()
    model(X[::-1] ** 2)
    variables = Net().init(jax.random.key(0), X)
    return model, {**variables, "batch_stats": stats_of(model)}


def of_linen(variables):
    stats = variables["batch_stats"]
    for part in PARTS:
        _, moments = Net().apply(variables, part, mutable=["batch_moments"])
        variables = {**variables, **moments}
    return jaxbn.end_accumulation(stats, variables["batch_moments"])


def eagerly(model):
    with jaxbn.accumulate(model):
        for part in PARTS:
            model(part)


def around_jit(model):
    step = nnx.jit(lambda model, part: model(part))
    with jaxbn.accumulate(model):
        for part in PARTS:
            step(model, part)


@pytest.mark.parametrize(
    ("run", "run_linen"),
    [
        pytest.param(eagerly, of_linen, marks=pytest.mark.exhaustive),
        (nnx.jit(eagerly), jax.jit(of_linen)),
        pytest.param(around_jit, of_linen, marks=pytest.mark.exhaustive),
    ],
    ids=["eagerly", "inside of jit", "around jit"],
)
def test_bit_for_bit_as_linen(run, run_linen):
    model, variables = trained()
    graph, before = nnx.graphdef(model), jax.tree.map(np.array, nnx.state(model))
    run(model)
    assert nnx.graphdef(model) == graph
    chex.assert_trees_all_equal_structs(nnx.state(model), before)
    stats, expected = stats_of(model), dict(run_linen(variables))
    # XLA fuses a jitted step, which rounds in another order.
    rtol = 1e-6 if run is around_jit else 0
    chex.assert_trees_all_close(stats, expected, rtol=rtol, atol=0)
    old = variables["batch_stats"]
    chex.assert_trees_all_equal(stats["frozen"], old["frozen"])
    for name in ("twice", "other", "window"):
        assert np.any(stats[name]["mean"] != old[name]["mean"])


def test_parts_are_one_update_of_the_whole():
    """Compares with float64. The layer's input does not depend on the parts."""
    layer = jaxbn.nnx.BatchNorm(4, momentum=0.75, rngs=nnx.Rngs(0))
    with jaxbn.accumulate(layer):
        for part in PARTS:
            layer(part)
        assert np.all(layer.mean[...] == 0)  # Nothing moves before the end.
    x = X.astype(np.float64)
    np.testing.assert_allclose(layer.mean[...], 0.25 * x.mean(0), rtol=1e-6)
    var = 0.75 + 0.25 * x.var(0, ddof=1)
    np.testing.assert_allclose(layer.var[...], var, rtol=1e-5)


@pytest.mark.exhaustive
def test_gradients_within():
    def loss(model, x):
        return jnp.sum(jnp.sin(model(x)))

    @nnx.jit
    def step(model, parts):
        with jaxbn.accumulate(model):
            return [nnx.grad(loss)(model, part) for part in parts]

    (model, _), (same, _) = trained(), trained()
    halves = np.split(X, 2)
    expected = [nnx.grad(loss)(nnx.clone(same), part) for part in halves]
    chex.assert_trees_all_close(step(model, halves), expected, rtol=1e-4, atol=1e-5)
    with jaxbn.accumulate(same):
        for part in halves:
            same(part)
    chex.assert_trees_all_close(stats_of(model), stats_of(same), rtol=1e-5)


def test_nothing_moves_without_a_call_or_after_an_exception():
    model, variables = trained()
    with jaxbn.accumulate(model):
        model.eval()
        model(X)  # Normalised by the running statistics, which do not move.
        model.train()
    graph = nnx.graphdef(model)

    def failing():
        with jaxbn.accumulate(model):
            model(X)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    chex.assert_trees_all_equal(stats_of(model), variables["batch_stats"])
    assert nnx.graphdef(model) == graph


def test_errors():
    def check(model, error, message):
        with pytest.raises(error, match=message), jaxbn.accumulate(model):
            pass

    model = Model()
    with jaxbn.accumulate(model):
        check(model.twice, ValueError, "must not accumulate already")
    assert not hasattr(model.twice, "accumulated")
    check(Net(), TypeError, r"NNX model, got Net; .*batch_moments")
    model.theirs = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    check(model, ValueError, r"\['theirs'\] could not be collected")
