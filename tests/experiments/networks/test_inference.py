"""Inference by statistics that are given, against NumPy."""

import functools

import jax
import numpy as np

from experiments.networks import fully_connected, inference
from jaxbn import linen

RNG = np.random.default_rng(0)
SPLIT = {
    "image": RNG.normal(2.0, 3.0, (11, 6)).astype(np.float32),
    "label": RNG.integers(10, size=11),
}
NORM = functools.partial(linen.BatchNorm, momentum=0.0, unbiased=False, epsilon=0.0)
MODEL = fully_connected.FullyConnected((5,), "relu", NORM)
PARAMS = MODEL.init(jax.random.key(0), SPLIT["image"], train=False)["params"]


def predictions(images, mean, var):
    """Returns the network's float64 predictions with these statistics of its layer."""
    kernels = [np.float64(PARAMS[f"Dense_{i}"]["kernel"]) for i in range(2)]
    hidden = np.maximum((images @ kernels[0] - mean) / np.sqrt(var), 0)
    return (hidden @ kernels[1]).argmax(-1)


def of_layer(images):
    u = np.float64(images) @ np.float64(PARAMS["Dense_0"]["kernel"])
    return u.mean(0), u.var(0)


def test_population_and_accuracy():
    stats = inference.population(MODEL, PARAMS, SPLIT["image"])
    mean, var = of_layer(SPLIT["image"])
    # Float32 rounding.
    np.testing.assert_allclose(stats["BatchNorm_0"]["mean"], mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stats["BatchNorm_0"]["var"], var, rtol=1e-4)
    right = predictions(SPLIT["image"], mean, var) == SPLIT["label"]
    found = inference.accuracy(MODEL, PARAMS, stats, SPLIT)
    np.testing.assert_allclose(found, right.mean(), rtol=1e-6)


def test_by_batches():
    labels = np.concatenate(
        [predictions(x, *of_layer(x)) for x in np.split(SPLIT["image"][:8], 2)]
    )
    labels[[0, 5]] += 1  # Two of eight are wrong; the last three are left out.
    split = {"image": SPLIT["image"], "label": np.append(labels, [-1, -1, -1])}
    found = inference.accuracy_by_batches(MODEL, PARAMS, split, 4)
    np.testing.assert_allclose(found, 6 / 8)


def test_a_split_smaller_than_a_batch():
    labels = predictions(SPLIT["image"], *of_layer(SPLIT["image"]))
    split = {"image": SPLIT["image"], "label": labels}
    assert inference.accuracy_by_batches(MODEL, PARAMS, split, 512) == 1
