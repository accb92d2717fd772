"""Merges the scales and shifts of normalisations into the parameters beside them.

In evaluation a normalisation is `y = scale * x + shift` per channel. Together with a
linear layer before or after it, this is again a linear layer. `fold` finds the layers
of a model in its program, and merges each of them with a neighbour if it has one.
"""

import collections
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._core import arguments
from jaxbn._layers import folded
from jaxbn.models._fold import graph as graph_lib
from jaxbn.models._fold import neighbours
from jaxbn.models._fold.graph import Axes, Graph, Node, Value
from jaxbn.models._fold.neighbours import Following, Norm, Preceding, Refusal

Outcome = Literal["before", "after", "affine", "left"]
_WORDS = {
    "before": "folded into {}",
    "after": "folded into {}, which follows",
    "affine": "a scale and a bias",
    "left": "left as it is",
}


class FoldedLayer(NamedTuple):
    """The result for one layer."""

    path: str
    place: Outcome  # "before" or "after": where `into` is; "affine": not folded.
    into: str | None  # The path of the layer into which it was folded.
    reason: str  # Why it was not folded into another layer; empty if it was.


class Report(NamedTuple):
    """One row per layer; layers that are called once come first, in their order."""

    layers: tuple[FoldedLayer, ...]

    def __str__(self) -> str:
        """Returns one line per layer."""
        names = [each.path or "(the model)" for each in self.layers]
        width = max(map(len, names), default=0)
        lines = []
        for name, each in zip(names, self.layers, strict=True):
            text = _WORDS[each.place].format(each.into)
            because = f": {each.reason}" if each.reason else ""
            lines.append(f"{name.ljust(width)}  {text}{because}")
        return "\n".join(lines)


class Affine(NamedTuple):
    """`y = scale * x + shift`, `[C]` each in float64; a folded part is None."""

    scale: Any
    shift: Any


class LayerInModel(NamedTuple):
    """A layer of the model, in any framework."""

    path: str
    axis: Any
    activation: str | None
    affine: Affine  # It has both parts.


class FoldedArrays(NamedTuple):
    """The result of folding the arrays of a model."""

    tree: Any
    affines: dict[str, Affine]  # What remains of every layer that ran, by path.
    report: Report
    used: frozenset[str]  # The paths of the leaves that the model reads.


class LayerInGraph(NamedTuple):
    """A normalisation of the model, with its affine map in evaluation."""

    path: str
    norm: Norm
    affine: Affine
    activates: bool


class FoldedGraph(NamedTuple):
    """The changed parameters, and what remains of all layers."""

    parameters: dict[Value, np.ndarray]  # The parameters that changed.
    affines: dict[str, Affine]  # What remains of each layer, by path.
    rows: dict[str, FoldedLayer]  # The rows of the report, by path.


def affine_of(mean: Any, var: Any, scale: Any, bias: Any, epsilon: float) -> Affine:
    """Returns the map that a layer applies in evaluation.

    A channel whose variance and epsilon are 0 is constant.
    """
    mean, var = np.asarray(mean), np.asarray(var)
    wide = np.result_type(mean, np.float64)
    square = var.astype(np.float64) + epsilon
    slope = np.where(square > 0, 1 / np.sqrt(np.where(square > 0, square, 1)), 0)
    slope = slope if scale is None else slope * np.asarray(scale).astype(wide)
    shift = -mean.astype(wide) * slope
    return Affine(slope, shift if bias is None else shift + np.asarray(bias))


def fold_arrays(
    run: Callable[[Any, Any], Any],
    tree: Any,
    example: Any,
    layers: Mapping[str, LayerInModel],
    is_parameter: Callable[[str], bool],
) -> FoldedArrays:
    """Folds layers into the parameters beside them.

    Args:
      run: the model as a function of `tree` and a batch; it returns all results.
      tree: the arrays of the model, whose layers `jaxbn._layers.folded` applies.
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

    once: list[LayerInGraph] = []
    rows: dict[str, FoldedLayer] = {}
    affines: dict[str, Affine] = {}
    for name, seen in layers.items():
        uses = graph.uses.get(values[name], ())
        if uses:
            affines[seen.path] = seen.affine
        if len(uses) == 1 and _is_call(uses[0], graph):
            once.append(_in_graph(graph, seen, uses[0]))
        elif uses:
            reason = f"it is called {len(uses)} times, or in a loop or branch"
            rows[seen.path] = FoldedLayer(seen.path, "affine", None, reason)
    calls = [node for node in graph.nodes if node.name == folded.NAME]
    order = {node.operands[0]: place for place, node in enumerate(calls)}
    once.sort(key=lambda layer: order[layer.norm.input])
    owners = {value: name.rpartition("/")[0] or name for value, name in names.items()}
    done = fold_graph(graph, once, leaves, owners)
    new = [
        as_array_like(leaf, done.parameters[value])
        if value in done.parameters
        else leaf
        for value, leaf in leaves.items()
    ]
    rows = {**done.rows, **rows}
    return FoldedArrays(
        jax.tree.unflatten(structure, new),
        {**affines, **done.affines},
        Report(tuple(rows.values())),
        frozenset(name for name, value in values.items() if graph.uses.get(value)),
    )


def _in_graph(graph: Graph, seen: LayerInModel, node: Node) -> LayerInGraph:
    axes = arguments.as_feature_axes(seen.axis, len(graph.shapes[node.operands[0]]))
    return LayerInGraph(
        seen.path, Norm(node, axes), seen.affine, seen.activation is not None
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


def fold_graph(
    graph: Graph,
    layers: list[LayerInGraph],
    parameters: Mapping[Value, Any],
    names: Mapping[Value, str],
) -> FoldedGraph:
    """Folds each layer into the layer before it, or else into the one after it.

    Args:
      graph: the graph of the whole model.
      layers: the layers to fold, each once.
      parameters: the parameters of the model.
      names: the name of the layer of each parameter.
    """
    changed: dict[Value, np.ndarray] = {}
    now = collections.ChainMap(changed, dict(parameters))
    affines = {layer.path: layer.affine for layer in layers}
    rows: dict[str, FoldedLayer] = {}
    # The layers that are folded into the layer before them, by their input.
    before: dict[Value, LayerInGraph] = {}

    for layer in layers:
        try:
            place = neighbours.preceding(graph, layer.norm)
        except Refusal as refusal:
            rows[layer.path] = FoldedLayer(layer.path, "affine", None, str(refusal))
            continue
        new, left = into_preceding(place, layer.affine, now)
        if not _fits(new, parameters):
            reason = "the layer before it cannot hold the numbers"
            rows[layer.path] = FoldedLayer(layer.path, "affine", None, reason)
            continue
        affines[layer.path] = left
        changed.update(new)
        before[layer.norm.input] = layer
        into = names[place.kernel.leaf]
        rows[layer.path] = FoldedLayer(layer.path, "before", into, "")

    norms = {value: layer.norm for value, layer in before.items()}
    for layer in layers:
        row = rows[layer.path]
        if row.place == "before":
            continue
        try:
            place = _after(graph, layer, norms)
        except Refusal as refusal:
            rows[layer.path] = row._replace(reason=f"{row.reason}; {refusal}")
            continue
        new, moved = into_following(place, layer.affine, now)
        changed.update(new)
        if place.bias is not None:
            bias = np.asarray(now[place.bias.leaf])
            moved = along(moved, place.bias.axes, bias.ndim)
            changed[place.bias.leaf] = bias + moved
        elif place.norm is not None:
            other = before[place.norm.input].path
            affines[other] = Affine(None, affines[other].shift + moved)
        affines[layer.path] = Affine(None, None)
        into = names[place.kernel.leaf]
        rows[layer.path] = FoldedLayer(layer.path, "after", into, "")
    return FoldedGraph(changed, affines, rows)


def _fits(new: Mapping[Value, np.ndarray], parameters: Mapping[Value, Any]) -> bool:
    """Returns whether the dtypes of the parameters can hold the new numbers."""
    with np.errstate(over="ignore"):
        return all(
            np.all(np.isfinite(array.astype(parameters[value].dtype)))
            for value, array in new.items()
        )


def _after(graph: Graph, layer: LayerInGraph, norms: Mapping[Value, Norm]) -> Following:
    """Returns the layer into which the normalisation before it can be folded.

    Raises:
      Refusal: if there is none, or if the normalisation itself forbids it.
    """
    residual = len(layer.norm.node.operands) > 3
    if layer.activates or residual:
        raise Refusal("its own activation or residual stands after it")
    found = neighbours.following(graph, layer.norm, norms)
    if found.pads and np.any(layer.affine.shift != 0):
        raise Refusal("the layer after it pads with zeros, which are not shifted")
    return found


def into_preceding(
    found: Preceding, affine: Affine, parameters: Mapping[Value, Any]
) -> tuple[dict[Value, np.ndarray], Affine]:
    """Merges `scale * (kernel x + bias) + shift` into one layer.

    Args:
      found: the layer before.
      affine: the affine map, with both arrays.
      parameters: the parameters of the model.

    Returns:
      The parameters that change, and what remains of the affine map: the shift if the
      layer has no bias.
    """
    kernel = np.asarray(parameters[found.kernel.leaf])
    changed = {
        found.kernel.leaf: kernel * along(affine.scale, found.kernel.axes, kernel.ndim)
    }
    if found.bias is None:
        return changed, Affine(None, affine.shift)
    bias = np.asarray(parameters[found.bias.leaf])
    scale, shift = (
        along(part, found.bias.axes, bias.ndim) for part in (affine.scale, affine.shift)
    )
    return {**changed, found.bias.leaf: scale * bias + shift}, Affine(None, None)


def into_following(
    found: Following, affine: Affine, parameters: Mapping[Value, Any]
) -> tuple[dict[Value, np.ndarray], np.ndarray]:
    """Merges `kernel (scale * x + shift)` into one layer.

    Returns:
      The kernel that changes, and the numbers to add to the outputs.
    """
    kernel = np.asarray(parameters[found.kernel.leaf])
    scale, shift = (
        _over_inputs(part, found, kernel.shape) for part in (affine.scale, affine.shift)
    )
    summed = tuple(a for a in range(kernel.ndim) if a not in found.outputs)
    moved = np.sum(kernel * shift, summed)
    # The sum keeps the order of the kernel's axes, not that of the outputs.
    moved = np.transpose(moved, np.argsort(np.argsort(found.outputs)))
    return {found.kernel.leaf: kernel * scale}, moved


def _over_inputs(
    values: np.ndarray, found: Following, shape: tuple[int, ...]
) -> np.ndarray:
    """Shapes `[C]` to broadcast over the inputs of the kernel, by groups."""
    if found.groups == 1:
        return along(values, found.kernel.axes, len(shape))
    (inputs,), (outputs,) = found.kernel.axes, found.outputs
    by_group = values.reshape(found.groups, shape[inputs])
    each = np.repeat(by_group, shape[outputs] // found.groups, axis=0)
    return along(each, (outputs, inputs), len(shape))


def along(values: np.ndarray, axes: Axes, ndim: int) -> np.ndarray:
    """Moves the axes of an array to the given places among `ndim` axes."""
    order = np.argsort(axes)
    others = tuple(a for a in range(ndim) if a not in axes)
    return np.expand_dims(np.transpose(values, order), others)


def as_path(keys: tuple[Any, ...]) -> str:
    """Returns the names on the path to a leaf, without the box that may hold it."""
    names = [jax.tree_util.keystr((key,), simple=True) for key in keys]
    return "/".join(names[:-1] if names[-1] == "value" else names)


def as_array_like(old: Any, new: Any) -> Any:
    """Returns the values of `new` with the dtype and the sharding of `old`."""
    new = np.asarray(new).astype(old.dtype)
    if not isinstance(old, jax.Array):
        return new
    return jax.device_put(new, old.sharding) if old.committed else jnp.asarray(new)
