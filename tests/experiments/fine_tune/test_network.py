"""The two networks are one."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.fine_tune import network
from jaxbn import interop


@pytest.mark.exhaustive
def test_shapes_and_names():
    net = network.Network()
    x = jnp.ones((2, 8, 8, 1))
    variables = net.init(jax.random.key(0), x, train=False)
    assert net.apply(variables, x, train=False).shape == (2, 10)
    weights = interop.to_torch(variables, network.NAMES)
    assert weights["0.weight"].shape == (16, 1, 3, 3)
    assert weights["14.weight"].shape == (10, 64)


@pytest.mark.exhaustive
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="compares with PyTorch; `pip install torch` runs it",
)
def test_pytorch_has_the_same_names_and_outputs():
    import torch

    torch.manual_seed(0)
    theirs = network.torch_network()
    x = np.random.default_rng(0).standard_normal((3, 9, 9, 1)).astype(np.float32)
    given = torch.tensor(np.moveaxis(x, -1, 1).copy())
    theirs(given)  # Moves the running statistics.
    theirs.eval()
    net = network.Network()
    template = net.init(jax.random.key(0), x, train=False)
    variables = interop.from_torch(theirs.state_dict(), template, network.NAMES)
    np.testing.assert_allclose(
        net.apply(variables, x, train=False),
        theirs(given).detach().numpy(),
        atol=1e-5,  # Float32 rounding of five layers.
    )
