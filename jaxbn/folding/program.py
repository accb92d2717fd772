"""Finds the layers of a model in its program, and folds them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn import checks, folded
from jaxbn.core import running
from jaxbn.folding import graph as graph_lib
from jaxbn.folding import search
from jaxbn.folding.graph import Graph, Node
from jaxbn.folding.linear import Norm
from jaxbn.folding.merging import Affine
from jaxbn.folding.report import FoldedLayer, Report


class Seen(NamedTuple):
    """A layer of the model, in any framework."""

    path: str
    axis: Any
    activation: str | None
    affine: Affine  # It has both parts.


class Found(NamedTuple):
    """The result of folding the arrays of a model."""

    tree: Any
    affines: dict[str, Affine]  # The rest of every layer that ran, by path.
    report: Report
    used: frozenset[str]  # The paths of the leaves that the model reads.


def affine_of(
    stats: running.BatchStats, scale: Any, bias: Any, epsilon: float
) -> Affine:
    """Returns the map that a layer applies in evaluation.

    A channel whose variance and epsilon are 0 is constant.
    """
    mean, var = (np.asarray(part) for part in stats)
    wide = np.result_type(mean, np.float64)
    square = var.astype(np.float64) + epsilon
    slope = np.where(square > 0, 1 / np.sqrt(np.where(square > 0, square, 1)), 0)
    slope = slope if scale is None else slope * np.asarray(scale).astype(wide)
    shift = -mean.astype(wide) * slope
    return Affine(slope, shift if bias is None else shift + np.asarray(bias))


def fold(
    run: Callable[[Any, Any], Any],
    tree: Any,
    example: Any,
    layers: Mapping[str, Seen],
    is_parameter: Callable[[str], bool],
) -> Found:
    """Folds layers into the parameters beside them.

    Args:
      run: the model as a function of `tree` and a batch; it returns all results.
      tree: the arrays of the model; `jaxbn.folded` applies its layers as affine maps.
      example: a batch, or its shapes and dtypes.
      layers: the layers, by the path of their scale in `tree`.
      is_parameter: returns whether the leaf with this path may be changed.
    """
    graph = graph_lib.trace(
        run, tree, example, folded.NAME, lambda keys: is_parameter(as_path(keys))
    )
    with_path, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves, names, values = {}, {}, {}
    for value, (keys, leaf) in zip(graph.inputs, with_path, strict=True):
        leaves[value], names[value] = leaf, as_path(keys)
        values[names[value]] = value

    once: list[search.Layer] = []
    rows: dict[str, FoldedLayer] = {}
    affines: dict[str, Affine] = {}
    for name, seen in layers.items():
        uses = graph.uses.get(values[name], ())
        if uses:
            affines[seen.path] = seen.affine
        if len(uses) == 1 and _is_call(uses[0], graph):
            once.append(_layer(graph, seen, uses[0]))
        elif uses:
            reason = f"it is called {len(uses)} times, or in a loop or branch"
            rows[seen.path] = FoldedLayer(seen.path, "affine", None, reason)
    calls = [node for node in graph.nodes if node.name == folded.NAME]
    order = {node.operands[0]: place for place, node in enumerate(calls)}
    once.sort(key=lambda layer: order[layer.norm.input])
    owners = {value: name.rpartition("/")[0] or name for value, name in names.items()}
    done = search.fold(graph, once, leaves, owners)
    new = [
        like(leaf, done.parameters[value]) if value in done.parameters else leaf
        for value, leaf in leaves.items()
    ]
    rows = {**done.rows, **rows}
    return Found(
        jax.tree.unflatten(structure, new),
        {**affines, **done.affines},
        Report(tuple(rows.values())),
        frozenset(name for name, value in values.items() if graph.uses.get(value)),
    )


def _is_call(node: Node | None, graph: Graph) -> TypeGuard[Node]:
    """Returns whether a node is a call of a layer, and not one in a gradient."""
    return (
        node is not None
        and node.name == folded.NAME
        and len(node.results) == 1
        and len(node.operands) in (3, 4)
        and graph.shapes[node.operands[0]] == graph.shapes[node.results[0]]
    )


def as_path(keys: tuple[Any, ...]) -> str:
    """Returns the names on the path to a leaf, without the box that may hold it."""
    names = [jax.tree_util.keystr((key,), simple=True) for key in keys]
    return "/".join(names[:-1] if names[-1] == "value" else names)


def like(old: Any, new: Any) -> Any:
    """Returns the values of `new` with the dtype and the sharding of `old`."""
    new = np.asarray(new).astype(old.dtype)
    if not isinstance(old, jax.Array):
        return new
    return jax.device_put(new, old.sharding) if old.committed else jnp.asarray(new)


def _layer(graph: Graph, seen: Seen, node: Node) -> search.Layer:
    axes = checks.as_feature_axes(seen.axis, len(graph.shapes[node.operands[0]]))
    return search.Layer(
        seen.path, Norm(node, axes), seen.affine, seen.activation is not None
    )
