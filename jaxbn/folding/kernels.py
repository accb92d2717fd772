"""The kernels of convolutions and products of arrays, and their axes."""

import math
from typing import NamedTuple

from jaxbn.folding import graph as graph_lib
from jaxbn.folding.graph import Axes, Graph, Node, Value

LINEAR = ("conv_general_dilated", "dot_general")


class Place(NamedTuple):
    """A parameter and some of its axes."""

    leaf: Value
    axes: Axes


def leaf_of(graph: Graph, value: Value, axes: Axes) -> Place | None:
    """Returns the parameter from which `value` comes by operations that only move data.

    `axes` are axes of `value`, and the result has those of the parameter. It is None if
    `value` is no single parameter, or if that is also used elsewhere.
    """
    while len(graph.uses.get(value, ())) == 1:
        if value in graph.parameters:
            return Place(value, axes)
        made = graph.producers.get(value)
        moved = None if made is None else graph_lib.before(graph, made, axes)
        if made is None or moved is None:
            return None
        value, axes = made.operands[0], moved
    return None


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


def _has_batch(node: Node) -> bool:
    """Returns whether a node computes several products, each with its own kernel."""
    if node.name == "conv_general_dilated":
        return node.params["batch_group_count"] > 1
    return bool(node.params["dimension_numbers"][1][0])


def _result_axes(graph: Graph, node: Node, operand: int) -> dict[int, int]:
    """Returns the axes of the result that come from one operand, with its own axes."""
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
    """Returns the summed axes of one operand, with the matching axes of the other."""
    if node.name == "conv_general_dilated":
        numbers = node.params["dimension_numbers"]
        return {numbers.lhs_spec[1]: numbers.rhs_spec[1]} if operand == 0 else {}
    contracted, _ = node.params["dimension_numbers"]
    return dict(zip(contracted[operand], contracted[1 - operand], strict=True))
