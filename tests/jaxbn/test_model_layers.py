"""Layers of a model are found, and their calls go through a hook."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import jaxbn.nnx
from jaxbn import linen, model_layers

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)


class Model(nnx.Module):
    """A shared layer, one of Flax, one in a list."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a = jaxbn.nnx.BatchNorm(3, rngs=rngs)
        self.also_a = self.a
        self.theirs = nnx.BatchNorm(3, rngs=rngs)
        self.many = nnx.List([jaxbn.nnx.BatchNorm(3, rngs=rngs)])

    def __call__(self, x):
        inner = nnx.jit(lambda layer, x: layer(x, False))
        return self.theirs(inner(self.a, self.many[0](x=self.also_a(x))))


def test_whose_a_layer_is(monkeypatch):
    rngs = nnx.Rngs(0)
    ours = linen.BatchNorm(), jaxbn.nnx.BatchNorm(3, rngs=rngs)
    theirs = nn.BatchNorm(), nnx.BatchNorm(3, rngs=rngs)
    others = nn.LayerNorm(), nnx.LayerNorm(3, rngs=rngs), None, nn.BatchNorm
    for _ in range(2):  # Before and after jaxbn's classes take the place of Flax's.
        assert [*map(model_layers.is_ours, (*ours, *theirs, *others))] == (
            [True] * 2 + [False] * 6
        )
        assert [*map(model_layers.is_flax, (*ours, *theirs, *others))] == (
            [False] * 2 + [True] * 2 + [False] * 4
        )
        monkeypatch.setattr("flax.linen.BatchNorm", linen.BatchNorm)
        monkeypatch.setattr("flax.nnx.BatchNorm", jaxbn.nnx.BatchNorm)


def test_a_layer_that_is_a_subclass_of_both_is_ours():
    class Both(linen.BatchNorm, nn.BatchNorm):
        pass

    class NnxBoth(jaxbn.nnx.BatchNorm, nnx.BatchNorm):
        pass

    for layer in (Both(), NnxBoth(3, rngs=nnx.Rngs(0))):
        assert model_layers.is_ours(layer)
        assert not model_layers.is_flax(layer)
        assert model_layers.base_class(layer).__module__.startswith("jaxbn.")


def test_layers_of_an_nnx_model():
    model = Model()
    assert set(model_layers.nnx_layers(model)) == {("a",), ("theirs",), ("many", "0")}
    ours = model_layers.nnx_layers(model, (jaxbn.nnx.BatchNorm,))
    assert set(ours) == {("a",), ("many", "0")}
    with pytest.raises(ValueError, match=r"\['theirs'\] could not be collected"):
        model_layers.check_collectable(model)


def test_calls_of_an_nnx_model():
    model, made = Model(), []
    expected = Model()(X)

    def note(call):
        made.append((call.path, dict(call.options)))
        return call.proceed()

    model_layers.hook_nnx(note, model)
    np.testing.assert_array_equal(model(X), expected)
    assert made == [
        (("a",), {}),
        (("many", "0"), {}),
        (("a",), {"use_running_average": False}),  # Within nnx.jit.
        (("theirs",), {}),
    ]
    assert isinstance(model.a, jaxbn.nnx.BatchNorm)
    model_layers.hook_nnx(lambda call: 2 * call.x, model)
    np.testing.assert_array_equal(model(X), 16 * X)
    np.testing.assert_array_equal(Model()(X), expected)  # Of no other model.


def test_a_hook_twice_is_called_once():
    layer, made = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0)), []
    for _ in range(2):
        model_layers.hook_nnx(lambda call: made.append(call) or call.proceed(), layer)
    layer(X)
    assert len(made) == 1


def test_calls_of_a_linen_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = linen.BatchNorm(name="ours")(x, False)
            return nn.BatchNorm(name="theirs")(x=x, use_running_average=False)

    variables = Net().init(jax.random.key(0), X)
    made = []

    def double(call):
        made.append((call.path, dict(call.options)))
        return 2 * call.x

    with model_layers.hooked_linen(double):
        y = Net().apply(variables, X)
    np.testing.assert_array_equal(y, 4 * X)
    options = {"use_running_average": False}
    assert made == [(("ours",), options), (("theirs",), options)]
    with model_layers.hooked_linen(double, (linen.BatchNorm,)):
        Net().apply(variables, X, mutable=["batch_stats"])
    assert len(made) == 3
