"""The convolution or dense layer before or after a normalisation.

Both functions ignore operations that only move data. They raise a `Refusal` with the
reason if the same values are also used elsewhere, or if another operation is between.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from jaxbn import folded
from jaxbn.folding import graph as graph_lib
from jaxbn.folding import kernels
from jaxbn.folding.graph import Axes, Graph, Node, Value
from jaxbn.folding.kernels import Place


class Norm(NamedTuple):
    """A normalisation in the graph."""

    node: Node
    axes: Axes  # The axes of its channels, in ascending order.

    @property
    def input(self) -> Value:
        """The value that is normalised."""
        return self.node.operands[0]


class Preceding(NamedTuple):
    """A linear layer before a normalisation: its outputs are normalised."""

    kernel: Place
    bias: Place | None


class Following(NamedTuple):
    """A linear layer after a normalisation: its inputs are the normalised values."""

    kernel: Place
    groups: int  # The groups of a convolution; each has its own channels.
    outputs: Axes  # The axes of the kernel that become axes of the result.
    bias: Place | None  # Its axes are those of `outputs`.
    norm: Norm | None  # The normalisation after it, whose shift may replace the bias.
    pads: bool  # True if it pads with zeros, which a shift of the inputs misses.


class Refusal(Exception):
    """The reason why there is no such layer."""


def preceding(graph: Graph, norm: Norm) -> Preceding:
    """Returns the layer whose outputs are normalised.

    Raises:
      Refusal: if there is none.
    """
    value, axes, bias = norm.input, norm.axes, None
    while True:
        if len(graph.uses.get(value, ())) > 1:
            raise Refusal("its input is used elsewhere too")
        made = graph.producers.get(value)
        if made is None:
            raise Refusal("nothing stands before it")
        if made.name in kernels.LINEAR:
            kernel = kernels.of_outputs(graph, made, axes)
            if kernel is None:
                raise Refusal(
                    "the layer before it has other channels, or a kernel that is "
                    "computed or shared"
                )
            return Preceding(kernel, bias)
        if made.name == "add" and bias is None:
            value, bias = _without_bias(graph, made, axes)
            continue
        moved = graph_lib.before(graph, made, axes)
        if moved is None:
            raise Refusal(f"{_words(made)} stands before it")
        value, axes = made.operands[0], moved


def following(graph: Graph, norm: Norm, taken: Mapping[Value, Norm]) -> Following:
    """Returns the layer whose inputs are the normalised values.

    Args:
      graph: the graph of the whole model.
      norm: the normalisation.
      taken: normalisations that are folded into the layer before them, by their input.

    Raises:
      Refusal: if there is none, or if neither it nor a normalisation after it can take
        a shift.
    """
    value, axes = norm.node.results[0], norm.axes
    while (user := _only_user(graph, value)).name not in kernels.LINEAR:
        moved = graph_lib.after(graph, user, axes)
        if moved is None:
            raise Refusal(f"{_words(user)} stands after it")
        value, axes = user.results[0], moved
    if jnp.finfo(graph.dtypes[value]).bits < 32:
        raise Refusal("the layer after it computes in half precision")
    found = kernels.of_inputs(graph, user, value, axes)
    if found is None:
        raise Refusal(
            "the layer after it does not sum over its channels, or has a kernel that "
            "is computed or shared"
        )
    kernel, outputs, places = found
    bias, after = _bias_after(graph, user.results[0], places, taken)
    convolves = user.name == "conv_general_dilated"
    return Following(
        kernel=kernel,
        groups=user.params["feature_group_count"] if convolves else 1,
        outputs=outputs,
        bias=bias,
        norm=after,
        pads=convolves and _pads(user),
    )


def _pads(convolution: Node) -> bool:
    """Returns whether a convolution has zeros beside its inputs or between them."""
    padding, dilation = (convolution.params[n] for n in ("padding", "lhs_dilation"))
    return any(max(pair) > 0 for pair in padding) or max(dilation, default=1) > 1


def _words(node: Node) -> str:
    known = {folded.NAME: "another normalisation", "add": "a sum"}
    return known.get(node.name, f"`{node.name}`")


def _only_user(graph: Graph, value: Value) -> Node:
    first, *others = graph.uses[value]
    if others:
        raise Refusal("its output is used more than once")
    if first is None:
        raise Refusal("nothing stands after it")
    return first


def _without_bias(graph: Graph, add: Node, axes: Axes) -> tuple[Value, Place]:
    """Splits a sum into a bias, which is a parameter, and the other operand."""
    for value, other in (add.operands, add.operands[::-1]):
        bias = _bias(graph, value, other, axes)
        if bias is not None:
            return value, bias
    raise Refusal("a sum stands before it")


def _bias_after(
    graph: Graph, value: Value, axes: Axes, taken: Mapping[Value, Norm]
) -> tuple[Place | None, Norm | None]:
    """Returns a bias or a normalisation that can take a shift of a layer's outputs."""
    while len(graph.uses.get(value, ())) == 1:
        if value in taken and taken[value].axes == axes:
            return None, taken[value]
        user = graph.uses[value][0]
        if user is None:
            break
        if user.name == "add":
            other = user.operands[user.operands[0] == value]
            bias = _bias(graph, value, other, axes)
            if bias is not None:
                return bias, None
        moved = graph_lib.after(graph, user, axes)
        if moved is None:
            break
        value, axes = user.results[0], moved
    raise Refusal("the layer after it has no bias")


def _bias(graph: Graph, value: Value, other: Value, axes: Axes) -> Place | None:
    """Returns `other` if it is a parameter with one number per channel of `value`."""
    sizes, given = graph.shapes[value], graph.shapes[other]
    if len(sizes) != len(given) or any(sizes[a] != given[a] for a in axes):
        return None
    return kernels.leaf_of(graph, other, axes)
