"""Merges the scales and shifts of normalisations into the layers before them.

In evaluation a normalisation is `y = scale * x + shift` per channel. Together with a
linear layer before it, this is again a linear layer. `fold_arrays` finds the layers of
a model in its program, and merges each of them with the layer before if it is linear.
"""

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
from jaxbn.models._fold.neighbours import Preceding, Refusal

Outcome = Literal["folded", "affine", "left"]
_WORDS = {
    "folded": "folded into {}",
    "affine": "a scale and a bias",
    "left": "left as it is",
}

NOT_CONSTANT = "its variant normalises by statistics of the input as well"
"""The reason why a layer with such a variant cannot be folded."""


class FoldedLayer(NamedTuple):
    """The result for one layer."""

    path: str
    outcome: Outcome  # "affine": a scale and a bias remain; "left": unchanged.
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
            text = _WORDS[each.outcome].format(each.into)
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
    affine: Affine  # It has both parts.


class FoldedArrays(NamedTuple):
    """The result of folding the arrays of a model."""

    tree: Any
    affines: dict[str, Affine]  # What remains of every layer that ran, by path.
    report: Report
    used: frozenset[str]  # The paths of the leaves that the model reads.


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
    """Folds normalisations into the parameters of the layers before them.

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

    once: dict[Value, LayerInModel] = {}  # By the output.
    rows: list[FoldedLayer] = []
    affines: dict[str, Affine] = {}
    for name, layer in layers.items():
        uses = graph.uses.get(values[name], ())
        if uses:
            affines[layer.path] = layer.affine
        if len(uses) == 1 and _is_call(uses[0], graph):
            once[uses[0].results[0]] = layer
        elif uses:
            reason = f"it is called {len(uses)} times, or in a loop or branch"
            rows.append(FoldedLayer(layer.path, "affine", None, reason))

    owners = {value: name.rpartition("/")[0] or name for value, name in names.items()}
    folded_rows, changed = [], {}
    for node in graph.nodes:
        layer = once.get(node.results[0])
        if layer is None:
            continue
        axes = arguments.as_feature_axes(
            layer.axis, len(graph.shapes[node.operands[0]])
        )
        try:
            found = neighbours.preceding(graph, node.operands[0], axes)
            new, left = into_preceding(found, layer.affine, leaves)
        except Refusal as refusal:
            row = FoldedLayer(layer.path, "affine", None, str(refusal))
        else:
            row = FoldedLayer(layer.path, "folded", owners[found.kernel.leaf], "")
            affines[layer.path] = left
            changed.update(new)
        folded_rows.append(row)
    new_leaves = [
        as_array_like(leaf, changed[value]) if value in changed else leaf
        for value, leaf in leaves.items()
    ]
    return FoldedArrays(
        jax.tree.unflatten(structure, new_leaves),
        affines,
        Report((*folded_rows, *rows)),
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

    Raises:
      Refusal: if the dtypes of the parameters cannot hold the new numbers.
    """
    kernel = np.asarray(parameters[found.kernel.leaf])
    scale = along(affine.scale, found.kernel.axes, kernel.ndim)
    changed, left = {found.kernel.leaf: kernel * scale}, Affine(None, affine.shift)
    if found.bias is not None:
        bias = np.asarray(parameters[found.bias.leaf])
        scale, shift = (along(part, found.bias.axes, bias.ndim) for part in affine)
        changed[found.bias.leaf] = scale * bias + shift
        left = Affine(None, None)
    with np.errstate(over="ignore"):
        for value, array in changed.items():
            if not np.all(np.isfinite(array.astype(parameters[value].dtype))):
                raise Refusal("the layer before it cannot hold the numbers")
    return changed, left


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
