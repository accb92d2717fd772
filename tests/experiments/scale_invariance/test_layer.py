import numpy as np
import pytest

from experiments.scale_invariance import layer


def test_reference_by_numerical_gradients():
    rng = np.random.default_rng(1)
    u, w, dy = rng.standard_normal((3, 6, 6))
    y, du, dw = layer.reference(u, w, dy)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(0), 1)
    step = 1e-6
    for place in ((0, 0), (3, 5)):
        for found, of_u in ((du, True), (dw, False)):
            values = []
            for sign in (1, -1):
                moved_u, moved_w = u.copy(), w.copy()
                (moved_u if of_u else moved_w)[place] += sign * step
                values.append((layer.reference(moved_u, moved_w, dy)[0] * dy).sum())
            slope = (values[0] - values[1]) / (2 * step)
            np.testing.assert_allclose(found[place], slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_identities_hold_without_epsilon(factor):
    found = layer.errors(factor, 0.0)
    assert set(found) == set(layer.QUANTITIES)
    assert max(found.values()) < 1e-6  # Float32 sums of 100 terms.


def test_epsilon_weighs_as_its_share_of_the_variance():
    # Half of epsilon over a variance of 1e-2: the first term of its square root.
    found = layer.errors(0.1, 1e-5)["y"]
    np.testing.assert_allclose(found, 0.5e-3, rtol=0.2)
