import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.crops_and_ensemble import crops, evaluation


@pytest.fixture
def probabilities():
    """Returns probabilities for 3 networks, 2 seeds, 50 images, 10 classes; labels."""
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(10), (3, 2, 50)), rng.integers(10, size=50)


def test_ensembles_average_probabilities(probabilities):
    predicted, labels = probabilities
    wrong = evaluation.wrong_by_size(predicted, labels)
    assert [len(wrong[count]) for count in (1, 2, 3)] == [3, 3, 1]
    for place, (a, b) in enumerate(itertools.combinations(range(3), 2)):
        for seed, image in itertools.product(range(2), range(50)):
            mean = [
                (predicted[a, seed, image, c] + predicted[b, seed, image, c]) / 2
                for c in range(10)
            ]
            expected = mean.index(max(mean)) != labels[image]
            assert wrong[2][place, seed, image] == expected


def test_drop_by_hand():
    # There are two seeds and four images.
    before = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], float)
    after = np.array([[1, 0, 0, 0], [1, 0, 0, 1]], float)
    found = evaluation.drop(before, after)
    assert found["seeds"] == [0.5, 0]
    # The mean over the seeds falls by 0, 1, .5 and -.5 for the four images.
    error = np.std([0, 1, 0.5, -0.5]) / 2
    assert found["standard_error"] == pytest.approx(error, abs=1e-5)


def test_the_mean_over_all_crops():
    """Compares with the crops one by one, for two seeds of a linear network."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(3, 16, 16, 1))
    variables = jnp.asarray(rng.normal(size=(2, 14 * 14, 10)), jnp.float32)

    def logits(matrix, crop):
        return crop.reshape(len(crop), -1) @ matrix

    one, mean = evaluation.predict(logits, variables, images, 14)

    def softmax(values):
        return np.exp(values) / np.exp(values).sum(-1, keepdims=True)

    def of(crop):
        taken = np.asarray(crops.take(jnp.asarray(images, jnp.float32), crop, 14))
        flat = taken.reshape(3, -1).astype(float)
        return np.stack([softmax(flat @ np.asarray(each, float)) for each in variables])

    expected = np.mean([of(crop) for crop in crops.scheme(16, 16, 14)], 0)
    # The logits are float32 sums of 196 terms, and about 10.
    np.testing.assert_allclose(mean, expected, atol=1e-4)
    np.testing.assert_allclose(one, of(crops.single(16, 16, 14)), atol=1e-4)


def test_parts_of_the_images_make_the_whole(monkeypatch):
    images = np.random.default_rng(0).uniform(size=(5, 16, 16, 1))
    variables = jax.random.normal(jax.random.key(0), (1, 14 * 14, 3))

    def logits(matrix, crop):
        return crop.reshape(len(crop), -1) @ matrix

    whole = evaluation.predict(logits, variables, images, 14)
    monkeypatch.setattr(evaluation, "_PART", 2)
    parts = evaluation.predict(logits, variables, images, 14)
    for actual, expected in zip(parts, whole, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)
