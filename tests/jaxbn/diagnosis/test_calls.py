"""Tests what is recorded of each call of jaxbn's and Flax's layers, Linen and NNX."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import estimators, linen
from jaxbn.core import running
from jaxbn.diagnosis import calls

RNG = np.random.default_rng(0)
X = (1 + 2 * RNG.standard_normal((64, 3))).astype(np.float32)
MASK = RNG.random((64, 1)) < 0.6
CALL = lambda model, batch: model(*batch)  # noqa: E731


def visited(walk, *given):
    """Returns every call that a walk over a model visits."""
    found = []
    walk(*given, found.append)
    return found


class Net(nn.Module):
    """A network that calls one layer twice, and then a layer of Flax."""

    @nn.compact
    def __call__(self, x, mask):
        twice = linen.BatchNorm(False, momentum=0.5, name="twice")
        x = twice(3 * twice(x, mask=mask) ** 2, mask=mask)
        return nn.BatchNorm(name="theirs")(x, False, mask=mask)


class Model(nnx.Module):
    """`Net` as an NNX model."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.twice = jaxbn.nnx.BatchNorm(3, momentum=0.5, rngs=rngs)
        self.theirs = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x, mask):
        x = self.twice(3 * self.twice(x, mask=mask) ** 2, mask=mask)
        return self.theirs(x, mask=mask)


def of_linen(variables=None, rngs=None):
    variables = variables or Net().init(jax.random.key(0), X, MASK)
    return visited(calls.of_linen, Net(), variables, (X, MASK), CALL, rngs)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_every_call_in_order(kind):
    made = (
        of_linen()
        if kind == "linen"
        else visited(calls.of_nnx, Model(), (X, MASK), CALL)
    )
    assert [each[:2] for each in made] == [("twice", 1), ("twice", 2), ("theirs", 1)]
    first, second, theirs = made
    valid = X[MASK[:, 0]].astype(np.float64)
    squared = 3 * ((X - valid.mean(0)) / np.sqrt(valid.var(0) + 1e-5)) ** 2
    np.testing.assert_array_equal(first.x, X)
    np.testing.assert_allclose(second.x, squared, rtol=1e-4, atol=1e-5)
    for each in made:
        np.testing.assert_array_equal(each.mask, np.broadcast_to(MASK, X.shape))
        # These are the statistics before the pass: a layer's first call moves them.
        np.testing.assert_array_equal(each.running.mean, np.zeros(3))
        np.testing.assert_array_equal(each.scale, np.ones(3))
        assert each.epsilon == 1e-5
    assert theirs.axis == -1


def test_an_nnx_model_is_not_changed():
    model = Model()
    model.eval()
    graph, state = nnx.split(model)
    before = jax.tree.map(np.array, state)
    visited(calls.of_nnx, model, (X, MASK), CALL)
    after_graph, after = nnx.split(model)
    assert after_graph == graph
    chex.assert_trees_all_equal(after, before)
    assert type(model.twice) is jaxbn.nnx.BatchNorm


@dataclasses.dataclass(frozen=True)
class Doubled:
    def init(self, shape, dtype):
        return running.init_batch_stats(shape, dtype)

    def update(self, state, moments):
        return estimators.ema().update(state, moments)

    def estimate(self, state):
        return running.BatchStats(2 * state.mean, 3 * state.var)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_what_evaluation_would_use(kind):
    """The estimator's estimate differs from its first two fields."""
    doubled = Doubled()
    if kind == "linen":
        layer = linen.BatchNorm(False, estimator=doubled)
        variables = layer.init(jax.random.key(0), X)
        stats = {"mean": jnp.ones(3), "var": jnp.full(3, 5.0)}
        variables = {**variables, "batch_stats": stats}
        given = variables, X, lambda model, x: model(x), None
        (found,) = visited(calls.of_linen, layer, *given)
        evaluated = layer.clone(use_running_average=True).apply(variables, X)
    else:
        layer = jaxbn.nnx.BatchNorm(3, estimator=doubled, rngs=nnx.Rngs(0))
        layer.mean[...], layer.var[...] = jnp.ones(3), jnp.full(3, 5.0)
        (found,) = visited(calls.of_nnx, layer, X, lambda model, x: model(x))
        evaluated = layer(X, use_running_average=True)
    np.testing.assert_array_equal(found.running.mean, np.full(3, 2.0))
    np.testing.assert_array_equal(found.running.var, np.full(3, 15.0))
    by_hand = jaxbn.batch_norm_inference(X, None, None, found.running)
    np.testing.assert_allclose(evaluated, by_hand, rtol=1e-6)


def test_without_parameters_and_of_a_subclass():
    class Own(jaxbn.nnx.BatchNorm):
        def __call__(self, x, **options):
            return super().__call__(x, **options)

    layer = Own(3, use_scale=False, use_bias=False)
    (found,) = visited(calls.of_nnx, layer, X, lambda model, x: model(x, mask=MASK))
    assert found.path == "Own"
    assert (found.scale, found.bias) == (None, None)


class Jitted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.jit(linen.BatchNorm)(False, name="bn")(x)


class Scanned(nnx.Module):
    def __init__(self):
        self.bn = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.jit(lambda bn, x: bn(x))(self.bn, x)


def test_hidden_inputs_are_told():
    call = lambda model, x: model(x)  # noqa: E731
    variables = Jitted().init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"outside of `jit`.* of 'bn'"):
        visited(calls.of_linen, Jitted(), variables, X, call, None)
    with pytest.raises(ValueError, match=r"outside of `jit`.* of 'bn'"):
        visited(calls.of_nnx, Scanned(), X, call)
