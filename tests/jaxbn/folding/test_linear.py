"""Tests which layers beside a normalisation are found, and why others are refused."""

import jax
import jax.numpy as jnp
import pytest

from jaxbn.folding import graph, linear

PARAMETERS = {"kernel": jnp.ones((3, 3)), "bias": jnp.ones((1, 3))}


@jax.jit
def norm(x):
    return 2 * x


def traced(function):
    found = graph.trace(function, PARAMETERS, jnp.ones((4, 3)), "norm")
    node = next(node for node in found.nodes if node.name == "norm")
    return found, linear.Norm(node, (1,))


def after(function, folded=()):
    found, layer = traced(function)
    norms = [n for n in found.nodes if n.name == "norm" and n is not layer.node]
    known = {n.operands[0]: linear.Norm(n, (1,)) for n in norms} if folded else {}
    return found, linear.following(found, layer, known)


def test_a_layer_before_with_its_bias():
    for function in (
        lambda p, x: norm(x @ p["kernel"] + p["bias"]),
        lambda p, x: norm(p["bias"] + (x @ p["kernel"]).astype(jnp.bfloat16)),
        lambda p, x: norm((x.reshape(2, 2, 3) @ p["kernel"]).reshape(4, 3) + p["bias"]),
    ):
        found, layer = traced(function)
        bias, kernel = found.inputs
        before = linear.preceding(found, layer)
        assert before.kernel == (kernel, (1,))
        assert before.bias == (bias, (1,))
    found, layer = traced(lambda p, x: norm(x @ p["kernel"]))
    assert linear.preceding(found, layer).bias is None


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda p, x: norm(x), "nothing stands before it"),
        (lambda p, x: norm(jnp.tanh(x @ p["kernel"])), "`tanh` stands before"),
        (lambda p, x: norm(x @ p["kernel"] + x), "a sum stands before"),
        (lambda p, x: norm(x @ p["kernel"] + p["bias"][:, :1]), "stands before it"),
        (lambda p, x: norm(x @ p["kernel"] + p["bias"] + p["bias"]), "a sum stands"),
        (lambda p, x: norm((x @ p["kernel"]).astype(int)), "cast that rounds"),
        (lambda p, x: (norm(y := x @ p["kernel"]), y), "used elsewhere too"),
        (lambda p, x: (norm(y := x @ p["kernel"]), jnp.sin(y)), "used elsewhere too"),
        (lambda p, x: (norm(x @ p["kernel"]), p["kernel"]), "computed or shared"),
        (lambda p, x: norm(x @ jnp.tanh(p["kernel"])), "computed or shared"),
        (lambda p, x: norm(x.T[:, :3] @ x[:3]), "computed or shared"),
    ],
)
def test_why_no_layer_stands_before(function, reason):
    found, layer = traced(function)
    with pytest.raises(linear.Refusal, match=reason):
        linear.preceding(found, layer)


def test_a_layer_after_with_its_bias():
    found, place = after(
        lambda p, x: (
            norm(x.astype(jnp.bfloat16)).astype(jnp.float32) @ p["kernel"] + p["bias"]
        )
    )
    bias, kernel = found.inputs
    assert place.kernel == (kernel, (0,))
    assert place.outputs == (1,)
    assert place.bias == (bias, (1,))
    assert not place.pads


def test_the_normalisation_after_it_may_take_the_shift():
    def function(p, x):
        return norm(norm(x) @ p["kernel"])

    found, place = after(function, folded=True)
    assert place.bias is None
    assert place.norm.node is found.nodes[-1]
    with pytest.raises(linear.Refusal, match="has no bias"):
        after(function)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda p, x: norm(x), "nothing stands after it"),
        (lambda p, x: jnp.tanh(norm(x)) @ p["kernel"], "`tanh` stands after"),
        (lambda p, x: ((y := norm(x)) @ p["kernel"], y), "used more than once"),
        (lambda p, x: norm(x) @ p["kernel"], "has no bias"),
        (lambda p, x: jnp.tanh(norm(x) @ p["kernel"]) + p["bias"], "has no bias"),
        (
            lambda p, x: norm(x) @ jnp.tanh(p["kernel"]) + p["bias"],
            "computed or shared",
        ),
        (lambda p, x: norm(x).astype(jnp.bfloat16) @ p["kernel"], "half precision"),
        (lambda p, x: x @ norm(x).T, "does not sum|computed"),
    ],
)
def test_why_no_layer_stands_after(function, reason):
    with pytest.raises(linear.Refusal, match=reason):
        after(function)


def convolved(p, x, padding, dilation):
    y = jax.lax.conv_general_dilated(
        x.reshape(1, *x.shape),
        p["kernel"].reshape(1, 3, 3),
        (1,),
        [padding],
        dilation,
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    return y.reshape(y.shape[1:]) + p["bias"]


@pytest.mark.parametrize(
    ("padding", "dilation", "pads"),
    [((0, 0), None, False), ((0, 0), (2,), True), ((0, 1), None, True)],
)
def test_zeros_beside_or_between_the_inputs(padding, dilation, pads):
    _, place = after(lambda p, x: convolved(p, norm(x), padding, dilation))
    assert place.pads == pads
