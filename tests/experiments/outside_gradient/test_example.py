import numpy as np

from experiments.outside_gradient import example


def test_the_closed_form_of_the_paper():
    found = example.train("centred outside", 0.1, 50)
    # Every step adds the rate times the mean of the targets, which is 1.
    np.testing.assert_allclose(found["bias"], 0.1 * np.arange(51), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["scale"], 1)
    # Half of the mean of (u / 2 - 1)^2, where u has mean 0 and variance 1.
    np.testing.assert_allclose(found["loss"], 0.625, rtol=1e-5)


def test_scaled_outside_in_float64():
    found = example.train("centred and scaled outside", 0.1, 5)
    u = np.float64(example.inputs())
    scale, bias = 1.0, 0.0
    for step in range(5):
        np.testing.assert_allclose(found["scale"][step], scale, rtol=1e-4)
        np.testing.assert_allclose(found["bias"][step], bias, rtol=1e-4, atol=1e-6)
        x = scale * u + bias
        std = np.sqrt(x.var() + 1e-5)
        error = (x - x.mean()) / std - (u / 2 + 1)
        scale -= 0.1 * (error * u).mean() / std
        bias -= 0.1 * error.mean() / std


def test_seen_by_the_gradient_nothing_moves():
    for variant in ("BN", "centred inside"):
        found = example.train(variant, 0.5, 20)
        assert np.abs(found["bias"]).max() < 1e-5
