import importlib.util

import numpy as np
import pytest

from experiments.measuring import peers

SHAPE = (6, 3, 3, 4)

# With `-m exhaustive`: PyTorch is large, and not installed by README's command.
TORCH = pytest.param(
    "torch",
    marks=[
        pytest.mark.exhaustive,
        pytest.mark.skipif(
            importlib.util.find_spec("torch") is None,
            reason="compares with PyTorch; `pip install torch` runs it",
        ),
    ],
)


@pytest.mark.parametrize("name", [*(n for n in peers.PEERS if n != "torch"), TORCH])
@pytest.mark.filterwarnings("default")  # Of the peers' own.
def test_every_peer_computes_the_same_layer(name):
    def found(name):
        y, _, (dx, *affine) = peers.PEERS[name](SHAPE, "float32").both()
        y, dx, *affine = (
            np.asarray(a.detach() if name == "torch" else a) for a in (y, dx, *affine)
        )
        if name in ("equinox", "torch"):  # In their own layout.
            y, dx = (np.moveaxis(a, 1, -1) for a in (y, dx))
        return [y, dx, *(a.reshape(4) for a in affine)]

    actual = found(name)
    for a, b in zip(actual, found("jaxbn"), strict=True):  # Rounding of values to 10.
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
    x, dy = peers.make_batch(SHAPE, "float32")
    np.testing.assert_allclose(actual[3], dy.sum((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(actual[0].mean((0, 1, 2)), 0, atol=1e-5)
    assert x.mean() > 0.5
