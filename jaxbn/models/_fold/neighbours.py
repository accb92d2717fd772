"""The convolution or dense layer before a normalisation, and its kernel.

`preceding` ignores operations that only move data. It raises a `Refusal` with the
reason if the same values are also used elsewhere, or if another operation is between.
"""

from typing import NamedTuple

from jaxbn._layers import folded
from jaxbn.models._fold import graph as graph_lib
from jaxbn.models._fold.graph import Axes, Graph, Node, Value

LINEAR = ("conv_general_dilated", "dot_general")


class Place(NamedTuple):
    """A parameter and some of its axes."""

    leaf: Value
    axes: Axes


class Preceding(NamedTuple):
    """A linear layer before a normalisation: its outputs are normalised."""

    kernel: Place
    bias: Place | None


class Refusal(Exception):
    """The reason why there is no such layer."""


def preceding(graph: Graph, value: Value, axes: Axes) -> Preceding:
    """Returns the layer whose outputs are normalised.

    Args:
      graph: the graph of the whole model.
      value: the input of the normalisation.
      axes: the axes of its channels, in ascending order.

    Raises:
      Refusal: if there is none.
    """
    bias = None
    while True:
        if len(graph.uses.get(value, ())) > 1:
            raise Refusal("its input is used elsewhere too")
        producer = graph.producers.get(value)
        if producer is None:
            raise Refusal("nothing stands before it")
        if producer.name in LINEAR:
            kernel = _of_outputs(graph, producer, axes)
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


def _of_outputs(graph: Graph, node: Node, axes: Axes) -> Place | None:
    """Returns the kernel, with its axes that become `axes` of the result."""
    for operand in (1, 0):
        places = _result_axes(graph, node, operand)
        if all(a in places for a in axes):
            value = node.operands[operand]
            kernel = _leaf_of(graph, value, tuple(places[a] for a in axes))
            if kernel is not None:
                return kernel
    return None


def _leaf_of(graph: Graph, value: Value, axes: Axes) -> Place | None:
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


def _words(node: Node) -> str:
    known = {folded.NAME: "another normalisation", "add": "a sum"}
    return known.get(node.name, f"`{node.name}`")


def _without_bias(graph: Graph, add: Node, axes: Axes) -> tuple[Value, Place]:
    """Splits a sum into a bias, which is a parameter, and the other operand."""
    for value, other in (add.operands, add.operands[::-1]):
        bias = _bias(graph, value, other, axes)
        if bias is not None:
            return value, bias
    raise Refusal("a sum stands before it")


def _bias(graph: Graph, value: Value, other: Value, axes: Axes) -> Place | None:
    """Returns `other` if it is a parameter with one number per channel of `value`."""
    sizes, given = graph.shapes[value], graph.shapes[other]
    if len(sizes) != len(given) or any(sizes[a] != given[a] for a in axes):
        return None
    return _leaf_of(graph, other, axes)
