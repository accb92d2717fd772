"""The graph of a function: a flat list of nodes without calls inside calls."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

Value = int  # The number of an input, or of a result of a node.
Axes = tuple[int, ...]

# Calls that are replaced by their computation. Loops and branches stay as they are.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}

# Casts between these are ignored. Any other cast may be meant to round.
_FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")

# Operations that change neither the values of channels nor their number.
_COPIES = ("convert_element_type", "copy", "copy_p", "name", "sharding_constraint")


class Node(NamedTuple):
    """One operation."""

    name: str  # The primitive, or a jitted function that was kept whole.
    params: Mapping[str, Any]
    operands: tuple[Value, ...]
    results: tuple[Value, ...]


class Graph(NamedTuple):
    """Nodes that lead to an output, in the order in which they are computed."""

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]  # The leaves of the variables.
    parameters: frozenset[Value]  # The inputs that may be changed.
    shapes: Mapping[Value, tuple[int, ...]]
    producers: Mapping[Value, Node]
    uses: Mapping[Value, tuple[Node | None, ...]]  # None for an output.


def trace(
    function: Callable[[Any, Any], Any],
    variables: Any,
    batch: Any,
    whole: str,
    is_parameter: Callable[[Any], bool] = lambda keys: True,
) -> Graph:
    """Returns the graph of `function(variables, batch)`.

    Args:
      function: a function of two trees of arrays.
      variables: arrays, or their shapes and dtypes; the inputs of the graph.
      batch: the other arrays, or their shapes and dtypes.
      whole: the name of a jitted function whose calls stay single nodes.
      is_parameter: returns whether the leaf with this path of keys may be changed.
    """
    closed = jax.make_jaxpr(function)(variables, batch)
    jaxpr = closed.jaxpr
    nodes: list[Node] = []
    shapes: dict[Value, tuple[int, ...]] = {}

    def value(atom: Any) -> Value:
        number = len(shapes)
        shapes[number] = tuple(getattr(atom.aval, "shape", ()))
        return number

    def visit(jaxpr: core.Jaxpr, arguments: Sequence[Value]) -> list[Value]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], arguments, strict=True))

        def read(atom: Any) -> Value:
            constant = isinstance(atom, core.Literal)
            return value(atom) if constant else known[atom]

        for eqn in jaxpr.eqns:
            operands = tuple(map(read, eqn.invars))
            name = eqn.primitive.name
            inner = eqn.params.get(_CALLS.get(name, ""))
            if inner is not None and eqn.params.get("name") == whole:
                name, inner = whole, None
            if name == "convert_element_type" and not _is_between_floats(eqn):
                name = "a cast that rounds"
            if inner is None:
                results = tuple(map(value, eqn.outvars))
                nodes.append(Node(name, eqn.params, operands, results))
            else:
                # The jaxpr of a rematerialised computation is not closed: it has no
                # constants.
                opened = getattr(inner, "jaxpr", inner)
                constants = [value(var) for var in opened.constvars]
                results = visit(opened, [*constants, *operands])
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    constants = [value(var) for var in jaxpr.constvars]
    inputs = tuple(map(value, jaxpr.invars))
    outputs = visit(jaxpr, [*constants, *inputs])
    needed = _needed(nodes, outputs)
    uses: dict[Value, list[Node | None]] = collections.defaultdict(list)
    for node in needed:
        for operand in node.operands:
            uses[operand].append(node)
    for output in outputs:
        uses[output].append(None)
    paths = [keys for keys, _ in jax.tree_util.tree_leaves_with_path(variables)]
    return Graph(
        nodes=needed,
        inputs=inputs[: len(paths)],
        parameters=frozenset(
            each
            for each, keys in zip(inputs, paths, strict=False)
            if is_parameter(keys)
        ),
        shapes=shapes,
        producers={result: node for node in needed for result in node.results},
        uses={each: tuple(users) for each, users in uses.items()},
    )


def _is_between_floats(cast: core.JaxprEqn) -> bool:
    dtypes = [getattr(a.aval, "dtype", int) for a in (*cast.invars, *cast.outvars)]
    return all(jnp.dtype(dtype).name in _FLOATS for dtype in dtypes)


def _needed(nodes: list[Node], outputs: Sequence[Value]) -> tuple[Node, ...]:
    """Returns the nodes that lead to an output."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.results):
            wanted |= set(node.operands)
            kept.append(node)
    return tuple(reversed(kept))


def before(graph: Graph, node: Node, axes: Axes) -> Axes | None:
    """Returns the axes of a node's operand that become `axes` of its result.

    The node must only move data. The result is None if the node does more than that, or
    if the operand does not have the same axes.
    """
    operand, result = graph.shapes[node.operands[0]], graph.shapes[node.results[0]]
    if node.name in _COPIES:
        return axes if len(node.operands) == 1 else None
    if node.name == "rev":
        return None if set(axes) & set(node.params["dimensions"]) else axes
    if node.name == "transpose":
        return tuple(node.params["permutation"][a] for a in axes)
    if node.name in ("reshape", "squeeze", "expand_dims"):
        return _moved(result, operand, axes)
    if node.name == "broadcast_in_dim":
        places = {out: a for a, out in enumerate(node.params["broadcast_dimensions"])}
        same = all(a in places and operand[places[a]] == result[a] for a in axes)
        return tuple(places[a] for a in axes) if same else None
    return None


def _moved(old: tuple[int, ...], new: tuple[int, ...], axes: Axes) -> Axes | None:
    """Returns where axes are after a reshape, or None if it splits or joins them."""
    found = []
    for a in axes:
        size = math.prod(old[:a])
        places = [
            b
            for b in range(len(new))
            if new[b] == old[a] and math.prod(new[:b]) == size
        ]
        if not places:
            return None
        found.append(places[0])
    return tuple(found)
