"""Finds the layers of a model in its program, and folds them there."""

import collections
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbn import checks, folded
from jaxbn.core import running
from jaxbn.folding import graph as graph_lib
from jaxbn.folding import search
from jaxbn.folding.graph import Graph, Node, Value
from jaxbn.folding.linear import Norm
from jaxbn.folding.merging import Affine
from jaxbn.folding.report import FoldedLayer, Report


class Seen(NamedTuple):
    """A layer of the model, whatever the framework."""

    path: str
    axis: Any
    activation: str | None
    affine: Affine  # Both parts.


class Found(NamedTuple):
    """What folding made of the arrays of a model."""

    tree: Any
    affines: dict[str, Affine]  # What is left of every layer that ran, by path.
    report: Report


def affine_of(
    stats: running.BatchStats, scale: Any, bias: Any, epsilon: float
) -> Affine:
    """The map that a layer is in evaluation; a channel without variance is constant."""
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
) -> Found:
    """Folds layers into the parameters beside them.

    Args:
      run: the model as a function of `tree` and of a batch.
      tree: its arrays; `jaxbn.folded` applies its layers as affine maps.
      example: a batch, or its shapes and dtypes.
      layers: by the path that the scale of each has in `tree`.
    """
    graph = graph_lib.trace(run, tree, example, folded.NAME)
    with_path, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves, names = {}, {}
    for value, (keys, leaf) in zip(graph.inputs, with_path, strict=True):
        leaves[value], names[value] = leaf, as_path(keys)

    calls: dict[str, list[Node]] = collections.defaultdict(list)
    for node in graph.nodes:
        if node.name == folded.NAME:
            scale = node.operands[1:2]  # None of a layer that was folded before.
            name = names.get(_source(graph, *scale), "") if scale else ""
            if name in layers:
                calls[name].append(node)
    ran = {layers[name].path: nodes for name, nodes in calls.items()}
    seen = {each.path: each for each in layers.values()}

    once = [
        _layer(graph, seen[p], nodes[0]) for p, nodes in ran.items() if len(nodes) == 1
    ]
    owners = {value: name.rpartition("/")[0] for value, name in names.items()}
    done = search.fold(graph, once, leaves, owners)
    often = {
        path: FoldedLayer(path, "affine", None, f"it is called {len(nodes)} times")
        for path, nodes in ran.items()
        if len(nodes) > 1
    }
    rows = {**done.rows, **often}
    return Found(
        jax.tree.unflatten(
            structure,
            [
                like(leaf, done.parameters[value]) if value in done.parameters else leaf
                for value, leaf in leaves.items()
            ],
        ),
        {path: done.affines.get(path, seen[path].affine) for path in ran},
        Report(tuple(rows[path] for path in ran)),
    )


def as_path(keys: tuple[Any, ...]) -> str:
    """The names on the way to a leaf, without the box that it may be in."""
    names = [jax.tree_util.keystr((key,), simple=True) for key in keys]
    return "/".join(names[:-1] if names[-1] == "value" else names)


def like(old: Any, new: Any) -> Any:
    """The values of `new` with the dtype and the sharding of `old`."""
    new = np.asarray(new).astype(old.dtype)
    return jax.device_put(new, old.sharding) if isinstance(old, jax.Array) else new


def _source(graph: Graph, value: Value) -> Value:
    """The input that an unchanged value comes from."""
    while value in graph.producers:
        value = graph.producers[value].operands[0]
    return value


def _layer(graph: Graph, seen: Seen, node: Node) -> search.Layer:
    axes = checks.as_feature_axes(seen.axis, len(graph.shapes[node.operands[0]]))
    return search.Layer(
        seen.path, Norm(node, axes), seen.affine, seen.activation is not None
    )
