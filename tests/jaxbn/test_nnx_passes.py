"""Collecting in a whole NNX model, bit for bit as Linen's collection."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
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


def of_linen(variables, parts=PARTS):
    stats = variables["batch_stats"]
    for part in parts:
        _, collected = Net().apply(variables, part, mutable=["batch_moments"])
        variables = {**variables, **collected}
    return jaxbn.move_batch_stats(stats, variables["batch_moments"])


def collected_eagerly(model):
    with jaxbn.collecting(model):
        for part in PARTS:
            model(part)


@nnx.jit
def collected_inside_of_jit(model):
    collected_eagerly(model)


def collected_around_jit(model):
    step = nnx.jit(lambda model, part: model(part))
    with jaxbn.collecting(model):
        for part in PARTS:
            step(model, part)


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(collected_eagerly, marks=pytest.mark.exhaustive),
        collected_inside_of_jit,
        pytest.param(collected_around_jit, marks=pytest.mark.exhaustive),
    ],
)
def test_bit_for_bit_as_linen(run):
    model, variables = trained()
    graph, before = nnx.graphdef(model), jax.tree.map(np.array, nnx.state(model))
    run(model)
    assert nnx.graphdef(model) == graph
    chex.assert_trees_all_equal_structs(nnx.state(model), before)
    if run is collected_inside_of_jit:
        expected = jax.jit(of_linen)(variables)
    elif run is collected_around_jit:
        expected = of_linen(variables)
        chex.assert_trees_all_close(stats_of(model), expected, rtol=1e-6)  # Fused.
        return
    else:
        expected = of_linen(variables)
    chex.assert_trees_all_equal(stats_of(model), dict(expected))
    stats, old = stats_of(model), variables["batch_stats"]
    chex.assert_trees_all_equal(stats["frozen"], old["frozen"])
    for name in ("twice", "other", "window"):
        assert np.any(stats[name]["mean"] != old[name]["mean"])


def test_parts_are_one_update_of_the_whole():
    """Compares with float64. The layer's input does not depend on the parts."""
    layer = jaxbn.nnx.BatchNorm(4, momentum=0.75, rngs=nnx.Rngs(0))
    with jaxbn.collecting(layer):
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
        with jaxbn.collecting(model):
            return [nnx.grad(loss)(model, part) for part in parts]

    model, _ = trained()
    same, _ = trained()
    halves = np.split(X, 2)
    grads = step(model, halves)
    for part, grad in zip(halves, grads, strict=True):
        expected = nnx.grad(loss)(nnx.clone(same), part)
        chex.assert_trees_all_close(grad, expected, rtol=1e-4, atol=1e-5)
    with jaxbn.collecting(same):
        for part in halves:
            same(part)
    chex.assert_trees_all_close(stats_of(model), stats_of(same), rtol=1e-5)


def test_without_a_call_nothing_moves():
    model, variables = trained()
    with jaxbn.collecting(model):
        model.eval()
        model(X)  # Normalised by the running statistics, which do not move.
        model.train()
    chex.assert_trees_all_equal(stats_of(model), variables["batch_stats"])


def test_an_exception_moves_nothing():
    model, variables = trained()
    graph = nnx.graphdef(model)

    def failing():
        with jaxbn.collecting(model):
            model(X)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    chex.assert_trees_all_equal(stats_of(model), variables["batch_stats"])
    assert nnx.graphdef(model) == graph


def test_errors():
    model = Model()
    with (
        jaxbn.collecting(model),
        pytest.raises(ValueError, match="must not be collecting already"),
        jaxbn.collecting(model.twice),
    ):
        pass
    assert not hasattr(model.twice, "collected")
    with (
        pytest.raises(TypeError, match=r"NNX model, got Net; .*batch_moments"),
        jaxbn.collecting(Net()),
    ):
        pass
    model.theirs = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    with (
        pytest.raises(ValueError, match=r"\['theirs'\] could not be collected"),
        jaxbn.collecting(model),
    ):
        pass
