import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.crops_and_ensemble import augmentation


def ramps(count):
    """Images whose two channels are the row and the column of each pixel."""
    rows, columns = np.mgrid[:32, :32].astype(np.float32)
    image = np.stack([rows, columns], -1)
    return jnp.asarray(np.broadcast_to(image, (count, *image.shape)))


@pytest.fixture(scope="module")
def parts_of():
    """The parts of 400 such images by seed, in one program."""
    parts = jax.jit(lambda key: augmentation.augment(key, ramps(400), 28))
    return lambda seed: np.asarray(parts(jax.random.key(seed)))


def test_parts_have_the_sizes_and_proportions_promised(parts_of):
    parts = parts_of(0)
    assert parts.shape == (400, 28, 28, 2)
    # Pixels of the image per pixel of the part, from the middle, where no border is.
    height = 28 * (parts[:, 18, 14, 0] - parts[:, 10, 14, 0]) / 8
    width = 28 * (parts[:, 14, 18, 1] - parts[:, 14, 10, 1]) / 8
    mirrored = width < 0
    assert 0.4 < mirrored.mean() < 0.6
    width = np.abs(width)
    area, shape = height * width / 32**2, width / height
    # The smallest crop of the evaluation is 28 of 44 pixels wide; a stretched part that
    # would leave the image is cut, which makes some a little smaller.
    assert (28 / 44) ** 2 * 0.85 < area.min() < 0.45
    assert 0.9 < area.max() <= 1.02
    # Values of a ramp that is reduced are off by up to 1 %, see test_crops.
    assert 0.75 * 0.99 < shape.min() < 0.8
    assert 1.25 < shape.max() < 4 / 3 * 1.01
    # Inside the image: interpolated values are between those of its pixels.
    assert parts.min() >= -1e-4
    assert parts.max() <= 31 + 1e-4


def test_a_function_of_the_key(parts_of):
    first = parts_of(0)
    np.testing.assert_array_equal(first, parts_of(0))
    assert not np.allclose(first, parts_of(1))


def test_images_of_a_batch_are_cut_each_in_its_own_way(parts_of):
    first, second, *_ = parts_of(0)
    assert not np.allclose(first, second)
