"""Layers in a row, all folded at once, against the same in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn.folding import graph, linear, search
from jaxbn.folding.merging import Affine

RNG = np.random.default_rng(0)
NAMES = ("first", "second", "third")


@jax.jit
def norm(x, scale, shift):
    return x * scale + shift


def network(p, x):
    """Dense, norm, norm, dense, norm: the second has only a layer after it."""
    x = norm(x @ p["kernel"], *p["first"])
    x = norm(jnp.tanh(x), *p["second"])
    return norm(x @ p["last"], *p["third"])


def parameters():
    made = {name: tuple(RNG.standard_normal((2, 1, 3))) for name in NAMES}
    return {
        **made,
        "kernel": RNG.standard_normal((3, 3)),
        "last": RNG.standard_normal((3, 3)),
    }


def test_all_are_folded_and_shifts_meet():
    given, x = parameters(), RNG.standard_normal((4, 3))
    found = graph.trace(network, given, x, "norm")
    nodes = [node for node in found.nodes if node.name == "norm"]
    layers = [
        search.Layer(
            name, linear.Norm(node, (1,)), Affine(*(p[0] for p in given[name])), False
        )
        for name, node in zip(NAMES, nodes, strict=True)
    ]
    leaves = dict(zip(found.inputs, jax.tree.leaves(given), strict=True))
    places = dict(zip(found.inputs, jax.tree.leaves_with_path(given), strict=True))
    names = {value: keys[0].key for value, (keys, _) in places.items()}
    done = search.fold(found, layers, leaves, names)
    assert [(row.place, row.into) for row in done.rows.values()] == [
        ("before", "kernel"),
        ("after", "last"),
        ("before", "last"),
    ]
    new = dict(given)
    for value, array in done.parameters.items():
        new[names[value]] = array
    for name, affine in done.affines.items():
        parts = zip(affine, (1.0, 0.0), strict=True)
        new[name] = tuple(
            np.full((1, 3), none if p is None else p) for p, none in parts
        )
    assert done.affines["second"] == (None, None)
    assert done.affines["third"].scale is None
    with jax.enable_x64(True):
        np.testing.assert_allclose(network(new, x), network(given, x), rtol=1e-10)


def layer_before(function, activates=False, shift=1.0):
    p = {"kernel": np.ones((3, 3)), "bias": np.ones((1, 3)), "scale": np.ones((1, 3))}
    found = graph.trace(function, p, np.ones((4, 3)), "norm")
    node = next(node for node in found.nodes if node.name == "norm")
    affine = Affine(np.ones(3), np.full(3, shift))
    layer = search.Layer("bn", linear.Norm(node, (1,)), affine, activates)
    leaves = dict(zip(found.inputs, jax.tree.leaves(p), strict=True))
    names = {value: str(value) for value in found.inputs}
    return search.fold(found, [layer], leaves, names).rows["bn"]


def test_both_reasons_are_given():
    def function(p, x):
        return norm(x, p["scale"], p["scale"])

    row = layer_before(function)
    assert row.place == "affine"
    assert row.reason == "nothing stands before it; nothing stands after it"


def test_an_activation_stays_before_the_layer_after():
    def function(p, x):
        return norm(x, p["scale"], p["scale"]) @ p["kernel"] + p["bias"]

    assert layer_before(function).place == "after"
    row = layer_before(function, activates=True)
    assert row.reason.endswith("its own activation or residual stands after it")


def test_zeros_that_pad_matter_only_to_a_shift():
    def function(p, x):
        x = norm(x, p["scale"], p["scale"]).reshape(1, 4, 3)
        kernel = p["kernel"].reshape(1, 3, 3)
        y = jax.lax.conv_general_dilated(
            x, kernel, (1,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y + p["bias"].reshape(1, 1, 3)

    assert "pads with zeros" in layer_before(function).reason
    assert layer_before(function, shift=0.0).place == "after"
