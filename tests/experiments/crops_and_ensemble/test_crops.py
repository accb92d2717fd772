from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.crops_and_ensemble import crops


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375)])
def test_144_different_crops_inside_the_image(height, width):
    scheme = crops.scheme(height, width, 224)
    assert len(scheme) == len(set(scheme)) == 4 * 3 * 6 * 2
    assert Counter(crop.shorter for crop in scheme) == dict.fromkeys(
        (256, 288, 320, 352), 36
    )
    for crop in scheme:
        rows, columns = crops.resized(height, width, crop.shorter)
        assert min(rows, columns) == crop.shorter
        assert crop.side in (224, crop.shorter)
        assert 0 <= crop.top <= rows - crop.side
        assert 0 <= crop.left <= columns - crop.side


def test_positions_at_the_first_scale():
    """A landscape of 256 x 384: squares at 0, 64 and 128."""
    scheme = crops.scheme(512, 768, 224)
    found = [crop[1:4] for crop in scheme[:36] if not crop.mirrored]
    expected = [
        (top, square + left, side)
        for square in (0, 64, 128)
        for top, left, side in [
            (0, 0, 224), (0, 32, 224), (32, 0, 224), (32, 32, 224), (16, 16, 224),
            (0, 0, 256),
        ]
    ]  # fmt: skip
    assert found == expected


def test_a_portrait_is_a_landscape_turned():
    turned = {
        crop._replace(top=crop.left, left=crop.top)
        for crop in crops.scheme(500, 375, 224)
    }
    assert turned == set(crops.scheme(375, 500, 224))


def test_every_crop_has_its_mirror_image():
    scheme = crops.scheme(375, 500, 224)
    assert {crop._replace(mirrored=not crop.mirrored) for crop in scheme} == set(scheme)


def test_of_a_square_image_three_squares_are_one():
    counted = Counter(crops.scheme(32, 32, 28))
    assert len(counted) == 48
    assert set(counted.values()) == {3}
    assert {crop.shorter for crop in counted} == {32, 36, 40, 44}


@pytest.mark.parametrize("shape", [(32, 32), (24, 32), (48, 32)])
def test_the_single_crop_is_one_of_them(shape):
    single = crops.single(*shape, 14)
    assert single in crops.scheme(*shape, 14)
    assert single.shorter == 16
    assert single.side == 14


def test_size_must_be_a_multiple_of_7():
    with pytest.raises(ValueError, match="`size` must be a positive multiple of 7"):
        crops.scheme(32, 32, 27)


def test_a_crop_without_resizing_is_a_slice():
    images = jax.random.normal(jax.random.key(0), (2, 16, 20, 3))
    crop = crops.Crop(16, 2, 5, 14, mirrored=False)
    expected = images[:, 2:16, 5:19]
    np.testing.assert_allclose(crops.take(images, crop, 14), expected, atol=1e-6)
    mirrored = crops.take(images, crop._replace(mirrored=True), 14)
    np.testing.assert_allclose(mirrored, expected[:, :, ::-1], atol=1e-6)


def test_a_larger_scale_shows_less():
    """A ramp of the columns: the crop's ends are where the scheme puts them."""
    ramp = jnp.broadcast_to(jnp.arange(32.0)[None, None, :, None], (1, 32, 32, 1))
    crop = crops.Crop(44, 16, 16, 28, mirrored=False)  # The lower right corner.
    row = np.asarray(crops.take(ramp, crop, 28))[0, 14, :, 0]
    # Pixel centres: column j of 44 lies at (j + .5) 32/44 - .5 of the image's.
    expected = (np.arange(16, 44) + 0.5) * 32 / 44 - 0.5
    # The last column is beyond the last pixel's centre, where the ramp ends.
    np.testing.assert_allclose(row[:-1], expected[:-1], atol=1e-4)


def test_the_whole_square_is_resized():
    ramp = jnp.broadcast_to(jnp.arange(32.0)[None, None, :, None], (1, 32, 32, 1))
    crop = crops.Crop(44, 0, 0, 44, mirrored=False)
    row = np.asarray(crops.take(ramp, crop, 28))[0, 14, :, 0]
    expected = (np.arange(28) + 0.5) * 32 / 28 - 0.5
    # A triangle over a few whole pixels keeps a ramp to a tenth of a pixel only.
    np.testing.assert_allclose(row[1:-1], expected[1:-1], atol=0.1)
