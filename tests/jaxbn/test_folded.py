"""A folded layer against the affine map that it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn import folded

RNG = np.random.default_rng(0)
EVALUATION = {"use_running_average": True, "update_running_average": False}


def apply(x, scale, bias, **options):
    options = {
        "axis": -1,
        "residual": None,
        "activation": None,
        "dtype": x.dtype,
    } | options
    return folded.apply(x, scale, bias, **{**EVALUATION, **options})


@pytest.mark.parametrize("has_scale", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_against_float64(has_scale, has_bias, dtype):
    x = jnp.asarray(RNG.standard_normal((4, 3, 5)), dtype)
    residual = jnp.asarray(RNG.standard_normal(x.shape), dtype)
    scale, bias = jnp.asarray(RNG.standard_normal((2, 3)), jnp.float32)
    y = apply(
        x,
        scale if has_scale else None,
        bias if has_bias else None,
        axis=1,
        residual=residual,
        activation="relu",
    )
    wide = np.asarray(x, np.float64)
    wide = wide * np.asarray(scale, float)[:, None] if has_scale else wide
    wide = wide + np.asarray(bias, float)[:, None] if has_bias else wide
    wide = np.maximum(wide + np.asarray(residual, float), 0)
    assert y.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-8  # Half a unit of bfloat16.
    np.testing.assert_allclose(np.asarray(y, float), wide, rtol=tolerance, atol=1e-6)


def test_nothing_left_is_the_identity():
    x = jnp.asarray(RNG.standard_normal((4, 3)), jnp.bfloat16)
    np.testing.assert_array_equal(apply(x, None, None), x)
    assert apply(jnp.arange(3).reshape(1, 3), None, None, dtype=jnp.float32).dtype == (
        jnp.float32
    )


def test_on_a_mesh_of_explicit_axes():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = RNG.standard_normal((3, 16)).astype(np.float32)
    with jax.set_mesh(mesh):
        split = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "data")))
        bias = jax.device_put(
            np.arange(16.0, dtype=np.float32), jax.NamedSharding(mesh, jax.P())
        )
        y = apply(split, None, bias)
        assert y.sharding == split.sharding
    np.testing.assert_array_equal(y, x + np.arange(16.0, dtype=np.float32))


@pytest.mark.parametrize(
    "switches",
    [
        {"use_running_average": False},
        {"update_running_average": True},
    ],
)
def test_training_is_refused(switches):
    with pytest.raises(ValueError, match=r"`jaxbn\.fold` has removed the statistics"):
        apply(jnp.ones((2, 3)), None, None, **switches)


def test_mistakes_are_found():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="`residual` must have the shape of `x`"):
        apply(x, None, None, residual=jnp.ones(3))
    with pytest.raises(ValueError, match="`activation` must be None or one of"):
        apply(x, None, None, activation="softmax")
    with pytest.raises(ValueError, match="`bias` must have"):
        apply(x, None, jnp.ones(2))
