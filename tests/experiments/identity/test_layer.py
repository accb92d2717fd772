import numpy as np
import pytest

from experiments.identity import layer


@pytest.mark.parametrize("ratio", layer.RATIOS)
def test_identity_forwards(ratio):
    found = layer.errors(ratio)
    # Rounding of the input itself, and of the mean.
    assert found["train"] < 1e-6 + 1e-7 * ratio
    assert found["inference"] < 1e-6 + 2e-7 * ratio
    assert found["inference_gradient"] < 1e-6


def test_gradient_loses_two_directions_of_as_many_as_examples():
    found = layer.errors(1.0)["train_gradient"]
    np.testing.assert_allclose(found, np.sqrt(2 / layer.EXAMPLES), rtol=0.1)
