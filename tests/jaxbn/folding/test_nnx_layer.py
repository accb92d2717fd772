"""Tests that a folded layer can be called with the original layer's arguments."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbn.folding import FoldedBatchNorm
from jaxbn.nnx import BatchNorm

X = jnp.arange(6.0).reshape(2, 3)


def test_it_takes_what_the_layer_took():
    norm = BatchNorm(3, activation="relu", rngs=nnx.Rngs(0))
    layer = FoldedBatchNorm(norm, jnp.array([1.0, -1.0, 2.0]), jnp.ones(3))
    y = layer(X, True, mask=X > 0, residual=-X)
    np.testing.assert_array_equal(y, np.maximum(X * jnp.array([[0, -2, 1]]) + 1, 0))
    assert isinstance(nnx.state(layer), nnx.State)


@pytest.mark.parametrize("dtype", [None, jnp.float16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_the_dtype_is_that_of_the_layer(dtype, param_dtype):
    norm = BatchNorm(3, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    norm.eval()
    for x in (X, X.astype(jnp.bfloat16), X.astype(int)):
        assert FoldedBatchNorm(norm, None, None)(x).dtype == norm(x).dtype


def test_training_is_refused():
    model = nnx.Sequential(
        FoldedBatchNorm(BatchNorm(3, rngs=nnx.Rngs(0)), None, jnp.ones(3))
    )
    np.testing.assert_array_equal(model(X), X + 1)
    model.train()
    with pytest.raises(ValueError, match="has removed the statistics"):
        model(X)
    with pytest.raises(ValueError, match="has removed the statistics"):
        model.layers[0](X, True, update_running_average=True)
