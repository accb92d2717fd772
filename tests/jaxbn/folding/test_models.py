"""`fold` on the networks of the studies, after `jax.export` too, and its mistakes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import jaxbn
from experiments.networks import inception, models
from jaxbn import linen
from jaxbn.nnx import BatchNorm
from tests.jaxbn.folding import random_values

RNG = np.random.default_rng(0)


def train(model, x):
    return model(x, train=True)


def evaluate(model, x):
    return model(x, train=False)


def errors(net, size):
    """Returns the errors of the folded and the unfolded network.

    The reference is the unfolded network in float64.
    """
    x = jnp.asarray(RNG.standard_normal((2, size, size, 3)), jnp.float32)
    variables = jax.jit(lambda x: net.init(jax.random.key(0), x, train=True))(x)
    variables = {**variables, "params": random_scales(variables["params"])}
    variables = jaxbn.recalibrate(net, variables, [x], train)
    new, report = jaxbn.fold(net, variables, x, evaluate)
    assert {row.place for row in report.layers} == {"before"}
    run = jax.jit(lambda variables, x: net.apply(variables, x, train=False))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        exact = np.asarray(run(wide, np.asarray(x, np.float64)))
    size = np.max(np.abs(exact))
    return [
        float(np.max(np.abs(run(each, x) - exact)) / size) for each in (new, variables)
    ]


def random_scales(params):
    """Returns `params` with random scales: a block's last scale of 0 would hide it."""
    rng = np.random.default_rng(0)

    def value(keys, leaf):
        is_scale = "scale" in jax.tree_util.keystr(keys)
        return (
            jnp.asarray(rng.uniform(0.5, 1, leaf.shape), leaf.dtype)
            if is_scale
            else leaf
        )

    return jax.tree_util.tree_map_with_path(value, params)


@pytest.mark.exhaustive
@pytest.mark.parametrize("net", [models.ResNet50(), inception.BNInception()])
def test_large_networks_to_rounding(net):
    folded, unfolded = errors(net, 128)
    assert folded < max(3 * unfolded, 1e-5)


@pytest.mark.exhaustive
def test_a_small_network_to_rounding():
    folded, unfolded = errors(
        models.SmallNetwork(classes=10, blocks=((16, 2), (16, 1))), 32
    )
    assert folded < max(3 * unfolded, 1e-5)


def round_trip(function, x):
    """The function from its serialised program, for a batch of any size."""
    batch = export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((*batch, *x.shape[1:]), x.dtype)
    saved = export.export(jax.jit(function))(shape).serialize()
    return export.deserialize(saved).call


def test_linen_models_are_exported():
    net = nn.Sequential(
        [nn.Conv(4, (3, 3)), linen.BatchNorm(use_running_average=True), nn.relu]
    )
    x = jnp.asarray(RNG.standard_normal((3, 8, 8, 2)), jnp.float32)
    variables = random_values.like(net.init(jax.random.key(0), x))
    new, _ = jaxbn.fold(net, variables, x, lambda net, x: net(x))
    for each in (variables, new):
        run = round_trip(lambda x, each=each: net.apply(each, x), x)
        for part in (x, x[:1]):
            # Another program of the same operations.
            np.testing.assert_allclose(run(part), net.apply(each, part), atol=1e-5)


def test_nnx_models_are_exported():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), BatchNorm(4, rngs=rngs))
    x = jnp.asarray(RNG.standard_normal((5, 3)), jnp.float32)
    model(x)
    model.eval()
    new, _ = jaxbn.fold(model, None, x, lambda model, x: model(x))
    for each in (model, new):
        run = round_trip(each, x)
        for part in (x, x[:2]):
            np.testing.assert_allclose(run(part), model(part), atol=1e-5)


def test_variables_are_for_linen_only():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="`variables` must be all that"):
        jaxbn.fold(linen.BatchNorm(), None, x, evaluate)
    with pytest.raises(ValueError, match="None for an NNX model"):
        jaxbn.fold(BatchNorm(3, rngs=nnx.Rngs(0)), {}, x, evaluate)


def test_a_model_without_layers_of_ours():
    net, x = nn.BatchNorm(use_running_average=True), jnp.ones((2, 3))
    variables = net.init(jax.random.key(0), x)
    new, report = jaxbn.fold(net, variables, x, lambda net, x: net(x))
    assert new == variables
    assert "import `BatchNorm` from `jaxbn.linen`" in str(report)
    with pytest.raises(ValueError, match="must run `BatchNorm` layers of jaxbn"):
        jaxbn.fold(nn.Dense(2), nn.Dense(2).init(jax.random.key(0), x), x, call)


def call(model, x):
    return model(x)


def test_shapes_are_enough_for_an_example():
    net = nn.Sequential([nn.Dense(4), linen.BatchNorm(use_running_average=True)])
    shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    variables = net.init(jax.random.key(0), jnp.ones((2, 3)))
    _, report = jaxbn.fold(net, variables, shape, lambda net, x: net(x))
    assert report.layers[0].place == "before"
