"""The flat graph of a function, and how axes move through it."""

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings

from jaxbn.folding import graph


@jax.jit
def kept(x):
    return 2 * x


def traced(function, x):
    return graph.trace(lambda x, _: function(x), x, (), "kept")


def names(function, x):
    return [node.name for node in traced(function, x).nodes]


def test_calls_are_opened_but_the_one_that_is_named():
    def function(x):
        return jax.checkpoint(nn.relu)(jax.jit(jnp.tanh)(kept(x)))

    assert names(function, jnp.ones(3)) == ["kept", "tanh", "max"]


def test_what_leads_to_no_output_is_left_out():
    def function(x):
        jnp.sin(x)
        return jnp.exp(x)

    found = traced(function, jnp.ones(3))
    assert [node.name for node in found.nodes] == ["exp"]
    assert found.uses[found.inputs[0]] == (found.nodes[0],)
    assert found.uses[found.nodes[0].results[0]] == (None,)


def test_a_cast_to_integers_is_no_copy():
    for x, dtype in ((jnp.ones(3), jnp.int8), (jnp.ones(3, jnp.int8), jnp.float32)):
        found = traced(lambda x, dtype=dtype: x.astype(dtype), x)
        assert graph.before(found, found.nodes[0], (0,)) is None


def test_loops_stay_closed():
    def function(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x)

    assert "sin" not in names(function, jnp.ones(3))


MOVES = {
    "transpose": lambda x: jnp.transpose(x, (2, 0, 1)),
    "front": lambda x: x.reshape(-1, x.shape[-1]),
    "back": lambda x: x.reshape(x.shape[0], -1),
    "ones": lambda x: x.reshape(1, *x.shape, 1),
    "cast": lambda x: x.astype(jnp.bfloat16),
    "broadcast": lambda x: jnp.broadcast_to(x, (5, *x.shape)),
    "flip": lambda x: jnp.flip(x, 1),
}


@settings(deadline=None, max_examples=60)
@given(
    move=st.sampled_from(list(MOVES)),
    shape=st.tuples(*[st.integers(2, 4)] * 3),
    axis=st.integers(0, 4),
)
def test_a_scaled_axis_is_the_scaled_axis_of_the_operand(move, shape, axis):
    function = MOVES[move]
    x = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    found = traced(function, x)
    (node,) = found.nodes
    y = function(jnp.asarray(x))
    if axis >= y.ndim:
        return
    (before,) = graph.before(found, node, (axis,)) or (None,)
    if before is None:
        return
    assert graph.after(found, node, (before,)) == (axis,)
    scale = 2.0 ** np.arange(y.shape[axis])

    def scaled(array, a):
        return array * np.expand_dims(scale, [i for i in range(array.ndim) if i != a])

    expected = np.asarray(y, np.float64)
    np.testing.assert_array_equal(
        np.asarray(function(jnp.asarray(scaled(x, before))), np.float64),
        scaled(expected, axis),
    )


def test_an_axis_that_is_joined_or_reversed_or_new_is_not_found():
    x = jnp.ones((2, 3, 4))
    for move, axis in (("front", 0), ("back", 1), ("flip", 1), ("broadcast", 0)):
        found = traced(MOVES[move], x)
        assert graph.before(found, found.nodes[0], (axis,)) is None
    found = traced(jnp.tanh, x)
    assert graph.before(found, found.nodes[0], (0,)) is None
