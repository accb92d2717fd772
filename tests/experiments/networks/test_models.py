import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import models


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(model):
    images = jnp.zeros((2, 224, 224, 3))
    return jax.eval_shape(
        lambda key: model.init(key, images, train=False), jax.random.key(0)
    )


def test_resnet50():
    layers = models.norm_layers(models.ResNet50())
    assert len(layers) == 53
    assert sum(layer.channels for layer in layers) == 26_560
    elements = sum(layer.channels * layer.positions for layer in layers)
    assert round(elements / 1e6, 2) == 11.11  # Per image.
    assert count(shapes(models.ResNet50())["params"]) == 25_557_032


def test_small_network_fits_the_fast_memory_of_a_tpu():
    layers = models.norm_layers(models.SmallNetwork(), image_size=96)
    assert len(layers) == 27
    largest = max(layer.channels * layer.positions for layer in layers)
    assert 2 * 32 * largest <= 16 * 2**20  # 32 images in bfloat16.


@pytest.mark.exhaustive
def test_recomputed_blocks_are_the_same_network():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3)))
    policy = jax.checkpoint_policies.nothing_saveable
    make = functools.partial(models.SmallNetwork, classes=3, blocks=((16, 1),))
    model, again = make(), make(policy=policy)
    variables = model.init(jax.random.key(0), x, train=False)
    gradients = [_gradient(each, variables, x) for each in (model, again)]
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-5)
    same = (shapes(models.ResNet50(policy=each)) for each in (None, policy))
    chex.assert_trees_all_equal_structs(*same)


def _gradient(model, variables, x):
    def loss(params):
        state = variables | {"params": params}
        y, _ = model.apply(state, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y))

    return jax.jit(jax.grad(loss))(variables["params"])


def test_parameters_stay_float32_whatever_is_computed_in():
    model = models.SmallNetwork(classes=3, blocks=((8, 1),), dtype=jnp.bfloat16)
    x = jnp.ones((2, 8, 8, 3))
    y, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=True), x
    )
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.exhaustive
def test_without_normalisation_a_convolution_has_a_bias():
    layer = models.ConvNorm(4, 3, norm=None)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 5, 3)))
    y, variables = layer.init_with_output(jax.random.key(0), x, train=True)
    assert set(variables) == {"params"}
    assert set(variables["params"]["Conv_0"]) == {"kernel", "bias"}
    with_residual = layer.apply(variables, x, True, residual=-y)
    chex.assert_trees_all_close(with_residual, jnp.minimum(with_residual, y))
    assert y.min() == 0
