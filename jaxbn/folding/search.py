"""Folds every normalisation of a graph into a layer beside it, if possible."""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxbn.folding import linear, merging
from jaxbn.folding.graph import Graph, Value
from jaxbn.folding.linear import Following, Norm, Refusal
from jaxbn.folding.merging import Affine
from jaxbn.folding.report import FoldedLayer


class Layer(NamedTuple):
    """A normalisation of the model, with its affine map in evaluation."""

    path: str
    norm: Norm
    affine: Affine
    activates: bool


class Folded(NamedTuple):
    """The changed parameters, and the rest of all layers."""

    parameters: dict[Value, np.ndarray]  # The parameters that changed.
    affines: dict[str, Affine]  # The rest of each layer, by path.
    rows: dict[str, FoldedLayer]  # The rows of the report, by path.


def fold(
    graph: Graph,
    layers: list[Layer],
    parameters: Mapping[Value, Any],
    names: Mapping[Value, str],
) -> Folded:
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
    before: dict[Value, Layer] = {}  # The layers folded into the one before, by input.

    for layer in layers:
        try:
            place = linear.preceding(graph, layer.norm)
        except Refusal as refusal:
            rows[layer.path] = FoldedLayer(layer.path, "affine", None, str(refusal))
            continue
        new, left = merging.into_preceding(place, layer.affine, now)
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
        new, moved = merging.into_following(place, layer.affine, now)
        changed.update(new)
        if place.bias is not None:
            bias = np.asarray(now[place.bias.leaf])
            moved = merging.along(moved, place.bias.axes, bias.ndim)
            changed[place.bias.leaf] = bias + moved
        elif place.norm is not None:
            other = before[place.norm.input].path
            affines[other] = Affine(None, affines[other].shift + moved)
        affines[layer.path] = Affine(None, None)
        into = names[place.kernel.leaf]
        rows[layer.path] = FoldedLayer(layer.path, "after", into, "")
    return Folded(changed, affines, rows)


def _fits(new: Mapping[Value, np.ndarray], parameters: Mapping[Value, Any]) -> bool:
    """Returns whether the dtypes of the parameters can hold the new numbers."""
    with np.errstate(over="ignore"):
        return all(
            np.all(np.isfinite(array.astype(parameters[value].dtype)))
            for value, array in new.items()
        )


def _after(graph: Graph, layer: Layer, norms: Mapping[Value, Norm]) -> Following:
    """Returns the layer after a normalisation that can take it.

    Raises:
      Refusal: if there is none, or if the normalisation itself forbids it.
    """
    residual = len(layer.norm.node.operands) > 3
    if layer.activates or residual:
        raise Refusal("its own activation or residual stands after it")
    found = linear.following(graph, layer.norm, norms)
    if found.pads and np.any(layer.affine.shift != 0):
        raise Refusal("the layer after it pads with zeros, which are not shifted")
    return found
