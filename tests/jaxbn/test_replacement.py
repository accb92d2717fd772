"""Other layers in the place of the normalisation of an NNX model."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from jaxbn import folding
from jaxbn.nnx import BatchNorm

X = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)


class Net(nnx.Module):
    """Layers in a list, of Flax, and one in two places."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), BatchNorm(4, rngs=rngs)])
        self.flax = nnx.BatchNorm(4, rngs=rngs, momentum=0.7, axis=-1)
        self.twice = self.layers[1]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.twice(self.flax(x))


def test_options_of_all_layers():
    model = Net()
    model(X)
    new = jaxbn.replace(model, momentum=0.5, unbiased=False, estimator="debiased")
    assert isinstance(new.flax, BatchNorm)
    assert new.twice is new.layers[1]
    assert (new.flax.momentum, model.flax.momentum) == (0.5, 0.7)
    for ours, old in ((new.flax, model.flax), (new.twice, model.twice)):
        for name in ("mean", "var", "scale", "bias"):
            np.testing.assert_array_equal(
                getattr(ours, name)[...], getattr(old, name)[...]
            )
    assert not jnp.any(new.flax.weight[...])  # What the estimator keeps besides.
    new(X)
    assert jnp.all(new.flax.var[...] != model.flax.var[...])
    model.eval()


def test_a_layer_of_flax_becomes_ours_as_it_is():
    model = Net()
    new = jaxbn.replace(model, where="flax", unbiased=False)
    assert isinstance(new.layers[1], BatchNorm)
    assert new.flax.momentum == 0.7
    np.testing.assert_allclose(new(X), model(X), atol=1e-6)  # Another sum of squares.
    np.testing.assert_allclose(new.flax.var[...], model.flax.var[...], atol=1e-6)


def test_options_that_remove_a_parameter():
    new = jaxbn.replace(Net(), use_scale=False)
    assert new.flax.scale is None
    assert new.flax.bias is not None


def test_other_layers_by_path():
    paths = []

    def make(path, norm):
        paths.append(path)
        return nnx.GroupNorm(norm.num_features, num_groups=2, rngs=nnx.Rngs(0))

    new = jaxbn.replace(Net(), make, ["layers", "flax"])
    assert sorted(paths) == ["flax", "layers/1"]
    assert isinstance(new.layers[1], nnx.GroupNorm)
    assert new.twice is new.layers[1]
    assert new(X).shape == X.shape


def test_a_scale_and_a_bias():
    model = Net()
    model(X)
    model.eval()
    new = jaxbn.replace(model, folding.as_affine, "layers")
    np.testing.assert_allclose(new(X), model(X), atol=1e-6)


def test_frozen_layers_stay_frozen():
    model = jaxbn.freeze(Net(), "layers")
    assert jaxbn.replace(model, momentum=0.5).twice.frozen == model.twice.frozen


def test_mistakes():
    with pytest.raises(ValueError, match="`where` must match"):
        jaxbn.replace(Net(), momentum=0.5, where="encoder")
    with pytest.raises(ValueError, match="exclude each other"):
        jaxbn.replace(Net(), lambda path, norm: norm, momentum=0.5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentun'"):
        jaxbn.replace(Net(), momentun=0.5)
