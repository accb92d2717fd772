"""The residual network, against NumPy where it is simple."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import residual
from jaxbn import linen

IMAGES = np.random.default_rng(0).uniform(size=(6, 5, 5, 1)).astype(np.float32)


def made(**options):
    model = residual.Residual(channels=4, **options)
    variables = model.init(jax.random.key(0), IMAGES, train=False)
    return model, variables


@pytest.mark.exhaustive
@pytest.mark.parametrize("over", ["channel", "activation"])
def test_over_what_a_mean_is_taken(over):
    axis = -1 if over == "channel" else (1, 2, 3)
    model, variables = made(norm=functools.partial(linen.BatchNorm, axis=axis))
    (logits, _), new = model.apply(
        variables, IMAGES, train=True, mutable=["batch_stats"]
    )
    assert logits.shape == (6, 10)
    shape = (4,) if over == "channel" else (3, 3, 4)
    chex.assert_shape(jax.tree.leaves(new), shape)
    assert len(new["batch_stats"]) == 5


def test_after_the_sum_a_block_has_its_normalised_sum():
    for place in ("before the sum", "after the sum"):
        model, variables = made(place=place, blocks=1)
        (_, _), seen = model.apply(
            variables, IMAGES, train=True, mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )  # fmt: skip
        layers = {
            name: each["__call__"][0]
            for name, each in seen["intermediates"].items()
            if isinstance(each, dict)
        }
        shortcut = jnp.maximum(layers["BatchNorm_0"], 0)
        branch, out = layers["Conv_2"], layers["BatchNorm_2"]
        x = branch if place == "before the sum" else branch + shortcut
        x = np.float64(x)
        expected = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
        np.testing.assert_allclose(out, expected, atol=1e-4)  # Float32.
