"""The flat graph of a function, and how axes move through it."""

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import jaxbn
from jaxbn._layers import folded
from jaxbn.models._fold import graph, merge

RNG = np.random.default_rng(0)


@jax.jit
def kept(x):
    return 2 * x


def traced(function, x):
    return graph.trace(lambda x, _: function(x), x, (), "kept")


def test_calls_are_opened_except_loops_and_the_named_one():
    def function(x):
        jnp.sin(x)  # It leads to no output.
        x = jax.checkpoint(nn.relu)(jax.jit(jnp.tanh)(kept(x)))
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.cos(x), x)

    found = traced(function, jnp.ones(3))
    names = [node.name for node in found.nodes]
    assert names[:3] == ["kept", "tanh", "max"]
    assert not {"sin", "cos"} & set(names)
    assert found.uses[found.inputs[0]] == (found.nodes[0],)
    assert found.uses[found.nodes[-1].results[-1]] == (None,)


MOVES = {
    "transpose": lambda x: jnp.transpose(x, (2, 0, 1)),
    "front": lambda x: x.reshape(-1, x.shape[-1]),
    "back": lambda x: x.reshape(x.shape[0], -1),
    "ones": lambda x: x.reshape(1, *x.shape, 1),
    "cast": lambda x: x.astype(jnp.bfloat16),
    "broadcast": lambda x: jnp.broadcast_to(x, (5, *x.shape)),
    "flip": lambda x: jnp.flip(x, 1),
}


def along(scale, ndim, axis):
    return np.expand_dims(scale, [a for a in range(ndim) if a != axis])


@settings(deadline=None, max_examples=60)
@given(
    move=st.sampled_from(list(MOVES)),
    shape=st.tuples(*[st.integers(2, 4)] * 3),
    axis=st.integers(0, 4),
)
def test_a_scaled_axis_is_the_scaled_axis_of_the_operand(move, shape, axis):
    function = MOVES[move]
    x = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    found, y = traced(function, x), function(jnp.asarray(x))
    (node,) = found.nodes
    before = graph.before(found, node, (axis,)) if axis < y.ndim else None
    if before is None:
        return
    scale = 2.0 ** np.arange(y.shape[axis])
    scaled = jnp.asarray(x * along(scale, x.ndim, *before), x.dtype)
    expected = np.asarray(y, np.float64) * along(scale, y.ndim, axis)
    np.testing.assert_array_equal(np.asarray(function(scaled), np.float64), expected)


def test_axes_that_are_not_found():
    """They are joined, reversed or new, or the operation is not a plain move."""
    x = jnp.ones((2, 3, 4))
    operations = MOVES | {
        "tanh": jnp.tanh, "round": lambda x: x.astype(jnp.int8)
    }  # fmt: skip
    for name, axis in (
        ("front", 0), ("back", 1), ("flip", 1), ("broadcast", 0),
        ("tanh", 0), ("round", 0),
    ):  # fmt: skip
        found = traced(operations[name], x)
        assert graph.before(found, found.nodes[0], (axis,)) is None, name
    found = traced(lambda x: x.astype(jnp.float32), jnp.ones(3, jnp.int8))
    assert graph.before(found, found.nodes[0], (0,)) is None


@pytest.mark.parametrize("has_affine", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_the_affine_map_is_the_layer_in_evaluation(has_affine, dtype):
    x = jnp.asarray(RNG.standard_normal((50, 4)), dtype)
    mean = jnp.asarray(RNG.standard_normal(4), jnp.promote_types(dtype, jnp.float32))
    stats = jaxbn.BatchStats(mean, jnp.array([0.0, 1.0, 4.0, 1e-12]))
    scale = jnp.array([1.0, 2.0, -3.0, 0.5]) if has_affine else None
    bias = jnp.array([0.5, 0.0, 1.0, 2.0]) if has_affine else None
    wide = jnp.promote_types(dtype, "f4")
    for epsilon in (1e-5, 0.0):  # Without it the first channel is constant.
        slope, shift = merge.affine_of(stats.mean, stats.var, scale, bias, epsilon)
        y = jaxbn.batch_norm_inference(
            x, scale, bias, stats, epsilon=epsilon, dtype=wide
        )
        expected = np.asarray(x).astype(np.result_type(slope, shift)) * slope + shift
        # float32 in the layer; a channel of variance 1e-12 is multiplied by 1e6.
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def apply(x, scale, bias, **options):
    defaults = {
        "use_running_average": True, "update_running_average": False, "axis": -1,
        "residual": None, "activation": None, "dtype": x.dtype,
    }  # fmt: skip
    return folded.apply(x, scale, bias, **(defaults | options))


@pytest.mark.parametrize("parts", ["scale", "bias", "both"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_folded_layer_against_float64(parts, dtype):
    x, residual = (jnp.asarray(RNG.standard_normal((4, 3, 5)), dtype) for _ in range(2))
    scale, bias = jnp.asarray(RNG.standard_normal((2, 3)), jnp.float32)
    scale, bias = None if parts == "bias" else scale, None if parts == "scale" else bias
    y = apply(x, scale, bias, axis=1, residual=residual, activation="relu")
    wide = np.asarray(x, np.float64)
    wide = wide if scale is None else wide * np.float64(scale)[:, None]
    wide = wide if bias is None else wide + np.float64(bias)[:, None]
    wide = np.maximum(wide + np.asarray(residual, np.float64), 0)
    assert y.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-8  # Half a unit of bfloat16.
    np.testing.assert_allclose(np.asarray(y, float), wide, rtol=tolerance, atol=1e-6)
    np.testing.assert_array_equal(apply(x, None, None), x)


def test_a_folded_layer_on_a_mesh_of_explicit_axes():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = RNG.standard_normal((3, 16)).astype(np.float32)
    bias = np.arange(16, dtype=np.float32)
    with jax.set_mesh(mesh):
        split = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "data")))
        y = apply(split, None, jax.device_put(bias, jax.NamedSharding(mesh, jax.P())))
        assert y.sharding == split.sharding
    np.testing.assert_array_equal(y, x + bias)


def test_mistakes_of_a_call_of_a_folded_layer():
    x = jnp.ones((2, 3))
    for switch in ({"use_running_average": False}, {"update_running_average": True}):
        with pytest.raises(ValueError, match=r"`jaxbn\.fold` has removed"):
            apply(x, None, None, **switch)
    with pytest.raises(ValueError, match="`residual` must have the shape of `x`"):
        apply(x, None, None, residual=jnp.ones(3))
    with pytest.raises(ValueError, match="`activation` must be None or one of"):
        apply(x, None, None, activation="softmax")
    with pytest.raises(ValueError, match="`bias` must have"):
        apply(x, None, jnp.ones(2))
