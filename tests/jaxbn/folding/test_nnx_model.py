"""Folded NNX models put out what they did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from jaxbn.folding import FoldedBatchNorm
from jaxbn.nnx import BatchNorm
from tests.jaxbn.folding import random_values

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((2, 8, 8, 3)), jnp.float32)


class Net(nnx.Module):
    """A layer before, one after, one used twice, one of Flax, and a shared kernel."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.relu = BatchNorm(8, activation="relu", rngs=rngs)
        self.transposed = nnx.ConvTranspose(8, 6, (3, 3), rngs=rngs)
        self.bare = BatchNorm(6, use_scale=False, use_bias=False)
        debiased = BatchNorm(6, estimator="debiased", rngs=rngs)
        self.head = nnx.List([debiased, nnx.Linear(6, 4, rngs=rngs)])
        self.shared = nnx.Linear(4, 4, rngs=rngs)
        self.twice = BatchNorm(4, rngs=rngs)
        self.flax = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        x = self.bare(self.transposed(self.relu(self.conv(x))))
        x = jnp.tanh(x)
        for layer in self.head:
            x = layer(x)
        x = self.twice(self.shared(x))
        x = self.flax(jnp.tanh(x))
        return self.twice(self.shared(x))


def trained(model):
    graph, state = nnx.split(model)
    return nnx.merge(graph, random_values.like(state))


def call(model, x):
    return model(x)


def test_a_whole_model():
    model = trained(Net(nnx.Rngs(0)))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    new, report = jaxbn.fold(model, None, X, call)
    assert {row.path: (row.place, row.into) for row in report.layers} == {
        "relu": ("before", "conv"),
        "bare": ("before", "transposed"),
        "head/0": ("after", "head/1"),
        "twice": ("affine", None),
        "flax": ("left", None),
    }
    assert isinstance(new.head[0], FoldedBatchNorm)
    assert new.relu.scale is None
    assert new.relu.bias is not None  # The convolution has none.
    assert new.bare.bias is None
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
    assert model.relu.use_running_average is False
    model.eval()
    # Float32 rounding of nine layers, of outputs of about 1.
    np.testing.assert_allclose(new(X), model(X), atol=1e-5)
    np.testing.assert_allclose(nnx.jit(call)(new, X), model(X), atol=1e-5)
    leaves = jax.tree.leaves
    assert len(leaves(nnx.state(new))) < len(leaves(nnx.state(model)))


def test_the_statistics_of_an_estimator_are_those_of_evaluation():
    model = nnx.Sequential(BatchNorm(3, estimator="debiased", rngs=nnx.Rngs(0)))
    model(X)  # One batch, of which the debiased estimate is that batch's own.
    model.eval()
    new, _ = jaxbn.fold(model, None, X, call)
    np.testing.assert_allclose(new(X), model(X), atol=1e-6)


class Activated(BatchNorm):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


class Remembering(nnx.Module):
    """Its state is added like a bias, but is not one."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(3, 4, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(4, rngs=rngs)
        self.state = nnx.Variable(jnp.zeros((1, 4)))

    def __call__(self, x):
        y = self.norm(self.dense(x) + self.state[...])
        self.state[...] = y.mean(0, keepdims=True)
        return y


def test_layers_with_a_call_of_their_own_stay():
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(3, 3, rngs=rngs), Activated(3, rngs=rngs)
    model = trained(nnx.Sequential(*layers))
    new, report = jaxbn.fold(model, None, X, call)
    assert "`Activated` has a `__call__` of its own" in report.layers[0].reason
    model.eval()
    np.testing.assert_array_equal(new(X), model(X))


def test_what_a_model_writes_is_no_parameter():
    model = trained(Remembering())
    x = X[0, 0]
    new, _ = jaxbn.fold(model, None, x, call)
    model.eval()
    for _ in range(3):
        np.testing.assert_allclose(new(x), model(x), atol=1e-5)


def test_no_training_mode():
    class Forced(nnx.Module):
        def __init__(self):
            self.norm = BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.norm(x, use_running_average=False)

    with pytest.raises(ValueError, match="has removed the statistics"):
        jaxbn.fold(Forced(), None, X, call)
