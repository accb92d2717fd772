import jax
import jax.numpy as jnp
import numpy as np

from experiments import models
from jaxbn import testing


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


def test_bn_inception():
    variables = shapes(models.BNInception())
    affine = 2 * sum(
        layer.channels for layer in models.norm_layers(models.BNInception())
    )
    classifier = 1025 * 1000
    # Of the branches' widths; the paper's text says 13.6 million.
    weights = count(variables["params"]) - affine - classifier
    assert round(weights / 1e6, 2) == 10.23


def test_outputs_of_the_inception_modules():
    # The table of the appendix, but for 4c, 4d and 4e, where its branches add up to
    # 608, 608 and 1056.
    outputs = (256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024)
    widths = []
    before = 192
    for one, _, three, _, five, projection, _ in models._INCEPTION.values():
        before = one + three + five + (projection or before)
        widths.append(before)
    assert tuple(widths) == outputs


def test_trains_on_small_images():
    model = models.BNInception(classes=3)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 64, 3)))
    y, variables = jax.jit(
        lambda x: model.init_with_output(jax.random.key(0), x, train=True)
    )(x)
    assert y.shape == (2, 3)
    testing.assert_valid_batch_stats(variables["batch_stats"])
