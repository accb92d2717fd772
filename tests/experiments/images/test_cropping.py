import numpy as np
import PIL.Image

from experiments.images import cropping

AREA = (0.08, 1.0)


def boxes(width, height, count=2000):
    rng = np.random.default_rng(0)
    return np.array(
        [cropping.random_box(rng, width, height, AREA) for _ in range(count)]
    )


def test_areas_proportions_and_places():
    left, top, right, bottom = boxes(500, 375).T
    assert left.min() >= 0 <= top.min()
    assert right.max() <= 500
    assert bottom.max() <= 375
    across, down = right - left, bottom - top
    area, proportion = across * down / (500 * 375), across / down
    assert 0.08 <= area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert 3 / 4 <= proportion.min() < 0.78
    assert 1.3 < proportion.max() <= 4 / 3
    # The space left and right of the box is split at random.
    room = (500 - across) > 50
    np.testing.assert_allclose((left / (500 - across))[room].mean(), 0.5, atol=0.03)


def test_where_nothing_fits_the_middle():
    box = cropping.random_box(np.random.default_rng(0), 1000, 10, (0.9, 1.0))
    assert box == (495, 0, 505, 10)


def test_the_middle_of_256_is_224():
    pixels = np.zeros((256, 384, 3), np.uint8)
    pixels[16:240, 80:304] = 255
    found = cropping.central(PIL.Image.fromarray(pixels), 224)
    np.testing.assert_array_equal(found, np.full((224, 224, 3), 255))
    pixels[16, :] = 0
    assert cropping.central(PIL.Image.fromarray(pixels), 224)[0].max() == 0


def test_a_random_part_is_where_its_box_is():
    """The values of the image's pixels are their columns and rows."""
    rows, columns = np.mgrid[:200, :240].astype(np.uint8)
    image = PIL.Image.fromarray(np.stack([columns, rows, rows], -1))
    part = cropping.random_resized(np.random.default_rng(5), image, 32)
    box = cropping.random_box(np.random.default_rng(5), 240, 200, AREA)
    left, top, right, bottom = box
    centres = (np.arange(32) + 0.5) / 32
    expected = left + (right - left) * centres - 0.5
    # Values are rounded to integers, and the filter reaches over the border of the box.
    np.testing.assert_allclose(part[16, 1:-1, 0], expected[1:-1], atol=1)
    expected = top + (bottom - top) * centres - 0.5
    np.testing.assert_allclose(part[1:-1, 16, 1], expected[1:-1], atol=1)
