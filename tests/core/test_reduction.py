import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn._core import reduction

P = jax.P


@pytest.mark.parametrize(
    ("ndim", "feature_axes", "expected"),
    [(2, (1,), (0,)), (4, (1,), (0, 2, 3)), (4, (1, 3), (0, 2)), (1, (0,), ())],
)
def test_all_other_axes_are_reduced(ndim, feature_axes, expected):
    assert reduction.reduction_axes(ndim, feature_axes) == expected


@pytest.mark.parametrize(
    ("dtype", "summed", "real"),
    [
        ("bfloat16", "float32", "bfloat16"),
        ("float16", "float32", "float16"),
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
        ("complex64", "complex64", "float32"),
    ],
)
def test_dtypes(dtype, summed, real):
    assert reduction.reduction_dtype(jnp.dtype(dtype)) == summed
    assert reduction.real_dtype(jnp.dtype(dtype)) == real


def split(array, *spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    return jax.device_put(array, jax.NamedSharding(mesh, P(*spec)))


@pytest.mark.parametrize(
    ("spec", "shards"),
    [(("data", "model"), (4, 2)), ((("data", "model"), None), (8, 1)), ((), (1, 1))],
)
def test_shards_of_explicit_axes(spec, shards):
    x = split(np.zeros((8, 6)), *spec)
    assert tuple(reduction.explicit_shards(x, axis) for axis in (0, 1)) == shards


def test_one_shard_where_no_mesh_is_known():
    assert reduction.explicit_shards(jnp.zeros((8, 6)), 0) == 1


def test_split_as_the_channels_of_another():
    x = split(np.zeros((8, 6)), "data", "model")
    whole = split(np.arange(6.0), None)
    made = reduction.split_as_channels(whole, x, (1,))
    assert jax.typeof(made).sharding.spec == P("model")
    np.testing.assert_array_equal(made, whole)
    assert reduction.split_as_channels(whole, jnp.zeros((8, 6)), (1,)) is whole
    back = reduction.split_as(made, whole)
    assert jax.typeof(back).sharding.spec == P(None)
    assert reduction.split_as(made, made) is made


def test_axes_along_which_an_array_varies():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    seen = []

    def note(x, whole):
        seen.extend([reduction.varying_axes(x), reduction.varying_axes(whole)])
        return x

    jax.shard_map(note, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"))(
        jnp.zeros(4), jnp.zeros(3)
    )
    assert seen[:2] == [{"d"}, set()]
    assert reduction.varying_axes(jnp.zeros(3)) == frozenset()
