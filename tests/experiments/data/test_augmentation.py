import numpy as np
import PIL.Image

from experiments.data import augmentation

AREA = (0.08, 1.0)


def boxes(width, height, count=2000):
    rng = np.random.default_rng(0)
    return np.array(
        [augmentation.random_box(rng, width, height, AREA) for _ in range(count)]
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
    box = augmentation.random_box(np.random.default_rng(0), 1000, 10, (0.9, 1.0))
    assert box == (495, 0, 505, 10)


def test_the_middle_of_256_is_224():
    pixels = np.zeros((256, 384, 3), np.uint8)
    pixels[16:240, 80:304] = 255
    found = augmentation.central(PIL.Image.fromarray(pixels), 224)
    np.testing.assert_array_equal(found, np.full((224, 224, 3), 255))
    pixels[16, :] = 0
    assert augmentation.central(PIL.Image.fromarray(pixels), 224)[0].max() == 0


def test_a_random_part_is_where_its_box_is():
    """The values of the image's pixels are their columns and rows."""
    rows, columns = np.mgrid[:200, :240].astype(np.uint8)
    image = PIL.Image.fromarray(np.stack([columns, rows, rows], -1))
    part = augmentation.random_resized(np.random.default_rng(5), image, 32)
    box = augmentation.random_box(np.random.default_rng(5), 240, 200, AREA)
    left, top, right, bottom = box
    centres = (np.arange(32) + 0.5) / 32
    expected = left + (right - left) * centres - 0.5
    # Values are rounded to integers, and the filter reaches over the border of the box.
    np.testing.assert_allclose(part[16, 1:-1, 0], expected[1:-1], atol=1)
    expected = top + (bottom - top) * centres - 0.5
    np.testing.assert_allclose(part[1:-1, 16, 1], expected[1:-1], atol=1)


IMAGE = np.random.default_rng(0).integers(256, size=(8, 9, 3), dtype=np.uint8)


def test_half_are_mirrored():
    rng = np.random.default_rng(0)
    found = [augmentation.mirror(rng, IMAGE) for _ in range(400)]
    mirrored = [np.array_equal(image, IMAGE[:, ::-1]) for image in found]
    plain = [np.array_equal(image, IMAGE) for image in found]
    assert sum(mirrored) + sum(plain) == 400
    assert 160 < sum(mirrored) < 240  # Four standard deviations.


def test_no_strength_changes_nothing():
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(augmentation.photometric(rng, IMAGE, 0), IMAGE)


def test_stronger_distortions_change_more():
    def change(strength):
        rng = np.random.default_rng(0)
        found = [augmentation.photometric(rng, IMAGE, strength) for _ in range(50)]
        assert found[0].dtype == np.uint8
        return np.mean(np.abs(np.array(found, float) - IMAGE))

    assert 0 < change(0.1) < change(0.2) < change(0.5)


def test_each_change_by_hand():
    pixels = IMAGE.astype(np.float64)
    grey = pixels @ [0.299, 0.587, 0.114]
    expected = [
        0.7 * pixels,
        grey.mean() + 0.7 * (pixels - grey.mean()),
        grey[..., None] + 0.7 * (pixels - grey[..., None]),
    ]
    for change in range(3):
        found = augmentation._towards(IMAGE.astype(np.float32), change, np.float32(0.7))
        # float32: 255 in 24 bits.
        np.testing.assert_allclose(found, expected[change], atol=1e-4)


def test_a_grey_image_stays_grey():
    grey = np.broadcast_to(IMAGE[..., :1], IMAGE.shape)
    found = augmentation.photometric(np.random.default_rng(0), grey, 0.5)
    assert np.ptp(found, axis=-1).max() <= 1  # Rounding.
