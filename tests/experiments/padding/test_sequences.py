"""Images as padded sequences."""

import jax.numpy as jnp
import numpy as np

from experiments.padding import sequences

IMAGES = np.random.default_rng(0).integers(1, 256, (40, 8, 8, 1)).astype(np.uint8)


def test_rows_up_to_the_length_and_zeros_beyond():
    made = sequences.from_images(IMAGES, 3, seed=0)
    assert made["image"].shape == (40, 8, 8)
    assert set(made["length"]) == set(range(3, 9))
    for image, x, length in zip(IMAGES, made["image"], made["length"], strict=True):
        np.testing.assert_allclose(x[:length], image[:length, :, 0] / 255, rtol=1e-6)
        assert not x[length:].any()
    again = sequences.from_images(IMAGES, 3, seed=1)
    assert not np.array_equal(made["length"], again["length"])


def test_large_images_are_halved():
    large = np.repeat(np.repeat(IMAGES, 2, 1), 2, 2)
    made = sequences.from_images(large, 3, seed=0)
    expected = sequences.from_images(IMAGES, 3, seed=0)
    np.testing.assert_allclose(made["image"], expected["image"], rtol=1e-6)


def test_mask_and_more_padding():
    made = {"image": jnp.ones((2, 3, 4)), "length": jnp.array([1, 3])}
    expected = np.array([[True, False, False], [True, True, True]])
    np.testing.assert_array_equal(sequences.mask(made), expected)
    longer = sequences.longer(made, 2)
    assert longer["image"].shape == (2, 6, 4)
    assert not longer["image"][:, 3:].any()
    np.testing.assert_array_equal(sequences.mask(longer)[:, :3], expected)
    assert not sequences.mask(longer)[:, 3:].any()
