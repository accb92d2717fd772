"""The convolution or dense layer before or after a normalisation, and its kernel.

`preceding` and `following` ignore operations that only move data. They raise a
`Refusal` with the reason if the same values are also used elsewhere, or if another
operation is between.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from jaxbn._layers import folded
from jaxbn.models._fold import graph as graph_lib
from jaxbn.models._fold.graph import Axes, Graph, Node, Value

LINEAR = ("conv_general_dilated", "dot_general")


class Place(NamedTuple):
    """A parameter and some of its axes."""

    leaf: Value
    axes: Axes


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
    norm: Norm | None  # The normalisation after it, if this takes the shift instead.
    pads: bool  # True if it pads with zeros, to which the shift must not be added.


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
        producer = graph.producers.get(value)
        if producer is None:
            raise Refusal("nothing stands before it")
        if producer.name in LINEAR:
            kernel = of_outputs(graph, producer, axes)
            if kernel is None:
                raise Refusal(
                    "the layer before it has other channels, or a kernel that is "
                    "computed or shared"
                )
            return Preceding(kernel, bias)
        if producer.name == "add" and bias is None:
            value, bias = _without_bias(graph, producer, axes)
            continue
        moved = graph_lib.before(graph, producer, axes)
        if moved is None:
            raise Refusal(f"{_words(producer)} stands before it")
        value, axes = producer.operands[0], moved


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
    while (user := _only_user(graph, value)).name not in LINEAR:
        moved = graph_lib.after(graph, user, axes)
        if moved is None:
            raise Refusal(f"{_words(user)} stands after it")
        value, axes = user.results[0], moved
    if jnp.finfo(graph.dtypes[value]).bits < 32:
        raise Refusal("the layer after it computes in half precision")
    found = of_inputs(graph, user, value, axes)
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


def of_outputs(graph: Graph, node: Node, axes: Axes) -> Place | None:
    """Returns the kernel, with its axes that become `axes` of the result."""
    for operand in (1, 0):
        places = _result_axes(graph, node, operand)
        if all(a in places for a in axes):
            value = node.operands[operand]
            kernel = leaf_of(graph, value, tuple(places[a] for a in axes))
            if kernel is not None:
                return kernel
    return None


def of_inputs(
    graph: Graph, node: Node, value: Value, axes: Axes
) -> tuple[Place, Axes, Axes] | None:
    """Finds the kernel that `axes` of the operand `value` are multiplied with.

    Returns:
      The kernel, with its axes that are multiplied with `axes`; its axes that become
      axes of the result; and the places of these in the result. None if `axes` are not
      summed over, or if there is no such kernel.
    """
    if node.operands.count(value) != 1:
        return None
    operand = node.operands.index(value)
    pairs = _summed_axes(node, operand)
    if not all(a in pairs for a in axes):
        return None
    places = _result_axes(graph, node, 1 - operand)
    inner = tuple(pairs[a] for a in axes)
    outer = {a: own for a, own in places.items() if own not in inner}
    value = node.operands[1 - operand]
    kernel = leaf_of(graph, value, (*inner, *outer.values()))
    if kernel is None or _has_batch(node):
        return None
    if math.prod(graph.shapes[kernel.leaf]) != math.prod(graph.shapes[value]):
        return None  # It is repeated along a summed axis.
    number = len(inner)
    inner, outputs = kernel.axes[:number], kernel.axes[number:]
    return Place(kernel.leaf, inner), outputs, tuple(outer)


def leaf_of(graph: Graph, value: Value, axes: Axes) -> Place | None:
    """Returns the parameter from which `value` comes by operations that only move data.

    `axes` are axes of `value`, and the result has those of the parameter. It is None if
    `value` is no single parameter, or if that is also used elsewhere.
    """
    while len(graph.uses.get(value, ())) == 1:
        if value in graph.parameters:
            return Place(value, axes)
        producer = graph.producers.get(value)
        moved = None if producer is None else graph_lib.before(graph, producer, axes)
        if producer is None or moved is None:
            return None
        value, axes = producer.operands[0], moved
    return None


def _has_batch(node: Node) -> bool:
    """Returns whether a node computes several products, each with its own kernel."""
    if node.name == "conv_general_dilated":
        return node.params["batch_group_count"] > 1
    return bool(node.params["dimension_numbers"][1][0])


def _result_axes(graph: Graph, node: Node, operand: int) -> dict[int, int]:
    """Maps the axes of the result that come from one operand to this operand's axes."""
    if node.name == "conv_general_dilated":
        numbers = node.params["dimension_numbers"]
        return {numbers.out_spec[1]: numbers.rhs_spec[0]} if operand == 1 else {}
    contracted, batch = node.params["dimension_numbers"]
    ndims = [len(graph.shapes[each]) for each in node.operands]
    free = [
        [a for a in range(ndims[i]) if a not in (*contracted[i], *batch[i])]
        for i in (0, 1)
    ]
    start = len(batch[0]) + (len(free[0]) if operand == 1 else 0)
    return {start + n: a for n, a in enumerate(free[operand])}


def _summed_axes(node: Node, operand: int) -> dict[int, int]:
    """Maps the summed axes of one operand to the matching axes of the other."""
    if node.name == "conv_general_dilated":
        numbers = node.params["dimension_numbers"]
        return {numbers.lhs_spec[1]: numbers.rhs_spec[1]} if operand == 0 else {}
    contracted, _ = node.params["dimension_numbers"]
    return dict(zip(contracted[operand], contracted[1 - operand], strict=True))


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
    """Returns a bias or a normalisation to which a shift of outputs can be added."""
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
    return leaf_of(graph, other, axes)
