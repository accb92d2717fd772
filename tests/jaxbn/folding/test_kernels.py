"""A scaled axis of a kernel scales the channels that it is said to make or take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn.folding import graph, kernels

RNG = np.random.default_rng(0)


def convolution(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def transposed(x, kernel):
    return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", transpose_kernel=True)


# ruff: noqa: E501
# Function, shape of x, shape of the kernel, channels that are summed over, that are made.
LINEAR = {
    "dense": (lambda x, k: x @ k, (5, 3), (3, 4), (-1,), (-1,)),
    "kernel first": (lambda x, k: jnp.einsum("ki,ni->kn", k, x), (5, 3), (4, 3), (1,), (0,)),
    "two axes out": (lambda x, k: jnp.einsum("ni,iab->nab", x, k), (5, 3), (3, 2, 4), (1,), (1, 2)),
    "two axes in": (lambda x, k: jnp.einsum("nab,abo->no", x, k), (5, 2, 3), (2, 3, 4), (2,), (1,)),
    "convolution": (convolution, (2, 5, 5, 3), (3, 3, 3, 4), (3,), (3,)),
    "transposed": (transposed, (2, 5, 5, 3), (3, 3, 4, 3), (3,), (3,)),
}  # fmt: skip


def traced(function, kernel, x):
    return graph.trace(lambda kernel, x: function(x, kernel), kernel, x, "")


def batch(found, node):
    """Returns the operand that is not a kernel."""
    place = [kernels.leaf_of(found, value, ()) for value in node.operands]
    return node.operands[place.index(None)]


def scaled(array, axes, scale):
    """Multiplies the array by `scale` along the given axes."""
    full = [1] * array.ndim
    for a, size in zip(axes, scale.shape, strict=True):
        full[a] = size
    return array * scale.reshape(full)


@pytest.mark.parametrize("case", LINEAR)
def test_axes_of_outputs_and_inputs(case):
    function, x_shape, kernel_shape, inputs, outputs = LINEAR[case]
    x, kernel = RNG.standard_normal(x_shape), RNG.standard_normal(kernel_shape)
    found = traced(function, kernel, x)
    node = next(n for n in found.nodes if n.name in kernels.LINEAR)
    y = np.asarray(function(x, kernel))
    ndim = len(found.shapes[node.results[0]])
    outputs = tuple(a % ndim for a in outputs)
    place = kernels.of_outputs(found, node, outputs)
    assert place.leaf == found.inputs[0]
    # Through the moves that may stand between the node and the output of the function.
    if y.shape == found.shapes[node.results[0]]:
        scale = RNG.standard_normal([y.shape[a] for a in outputs])
        np.testing.assert_allclose(
            function(x, scaled(kernel, place.axes, scale)),
            scaled(y, outputs, scale),
            rtol=1e-4,  # Of sums in float32 that may cancel.
            atol=1e-5,
        )
    inputs = tuple(a % x.ndim for a in inputs)
    place, made, places = kernels.of_inputs(found, node, batch(found, node), inputs)
    assert place.leaf == found.inputs[0]
    assert [kernel_shape[a] for a in made] == [
        found.shapes[node.results[0]][a] for a in places
    ]
    scale = RNG.standard_normal([x.shape[a] for a in inputs])
    np.testing.assert_allclose(
        function(x, scaled(kernel, place.axes, scale)),
        function(scaled(x, inputs, scale), kernel),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_kernel_that_is_used_twice_or_computed_is_none():
    x, kernel = jnp.ones((5, 3)), jnp.ones((3, 4))
    for function in (
        lambda x, k: (x @ k, k),
        lambda x, k: x @ jnp.tanh(k),
        lambda x, k: x @ jnp.ones((3, 4)),
    ):
        found = traced(function, kernel, x)
        node = next(n for n in found.nodes if n.name == "dot_general")
        assert kernels.of_outputs(found, node, (1,)) is None
        assert kernels.of_inputs(found, node, node.operands[0], (1,)) is None


def test_channels_that_are_not_summed_over_are_none():
    found = traced(jnp.matmul, jnp.ones((3, 4)), jnp.ones((3, 5, 3)))
    (node,) = found.nodes
    assert kernels.of_inputs(found, node, batch(found, node), (0,)) is None
    assert kernels.of_outputs(found, node, (0,)) is None  # An axis of the batch.


def test_kernels_side_by_side_and_repeated_ones_are_none():
    """Each kernel has its own shift, or the shift repeats as often as the kernel."""
    x = jnp.ones((6, 5, 3))

    def repeated(x, k):
        return jnp.einsum("hni,hio->no", x, jnp.broadcast_to(k, (6, 3, 4)))

    for function, kernel in (
        (lambda x, k: jnp.einsum("hni,hio->hno", x, k), jnp.ones((6, 3, 4))),
        (repeated, jnp.ones((3, 4))),
    ):
        found = traced(function, kernel, x)
        node = next(n for n in found.nodes if n.name == "dot_general")
        operand = batch(found, node)
        axis = found.shapes[operand].index(3)
        assert kernels.of_inputs(found, node, operand, (axis,)) is None
