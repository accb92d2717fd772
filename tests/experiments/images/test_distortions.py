import numpy as np

from experiments.images import distortions

IMAGE = np.random.default_rng(0).integers(256, size=(8, 9, 3), dtype=np.uint8)


def test_half_are_mirrored():
    rng = np.random.default_rng(0)
    found = [distortions.mirror(rng, IMAGE) for _ in range(400)]
    mirrored = [np.array_equal(image, IMAGE[:, ::-1]) for image in found]
    plain = [np.array_equal(image, IMAGE) for image in found]
    assert sum(mirrored) + sum(plain) == 400
    assert 160 < sum(mirrored) < 240  # Four standard deviations.


def test_no_strength_changes_nothing():
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(distortions.photometric(rng, IMAGE, 0), IMAGE)


def test_stronger_distortions_change_more():
    def change(strength):
        rng = np.random.default_rng(0)
        found = [distortions.photometric(rng, IMAGE, strength) for _ in range(50)]
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
        found = distortions._towards(IMAGE.astype(np.float32), change, np.float32(0.7))
        # float32: 255 in 24 bits.
        np.testing.assert_allclose(found, expected[change], atol=1e-4)


def test_a_grey_image_stays_grey():
    grey = np.broadcast_to(IMAGE[..., :1], IMAGE.shape)
    found = distortions.photometric(np.random.default_rng(0), grey, 0.5)
    assert np.ptp(found, axis=-1).max() <= 1  # Rounding.
