"""Parts of folding that models of both frameworks share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn.folding import program

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("has_affine", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_affine_of_is_the_layer_in_evaluation(has_affine, dtype):
    x = jnp.asarray(RNG.standard_normal((50, 4)), dtype)
    mean = jnp.asarray(RNG.standard_normal(4), jnp.promote_types(dtype, jnp.float32))
    stats = jaxbn.BatchStats(mean, jnp.array([0.0, 1.0, 4.0, 1e-12]))
    scale = jnp.array([1.0, 2.0, -3.0, 0.5]) if has_affine else None
    bias = jnp.array([0.5, 0.0, 1.0, 2.0]) if has_affine else None
    for epsilon in (1e-5, 0.0):  # Without it the first channel has no variance.
        slope, shift = program.affine_of(stats, scale, bias, epsilon)
        y = jaxbn.batch_norm_inference(
            x, scale, bias, stats, epsilon=epsilon, dtype=jnp.promote_types(dtype, "f4")
        )
        expected = np.asarray(x).astype(np.result_type(slope, shift)) * slope + shift
        # float32 in the layer; a channel of variance 1e-12 is multiplied by 1e6.
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_names_leave_boxes_out():
    keys = (jax.tree_util.DictKey("a"), jax.tree_util.SequenceKey(0))
    assert program.as_path(keys) == "a/0"
    assert program.as_path((*keys, jax.tree_util.GetAttrKey("value"))) == "a/0"


def test_new_values_lie_where_the_old_ones_did():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    old = jax.device_put(jnp.zeros(8, jnp.bfloat16), sharding)
    new = program.like(old, np.arange(8.0))
    assert new.sharding == sharding
    assert new.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(new, np.float64), np.arange(8.0))
    assert isinstance(program.like(np.zeros(2, np.float32), np.ones(2)), np.ndarray)
