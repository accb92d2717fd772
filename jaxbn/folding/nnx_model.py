"""Folding of an NNX model."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn import layer as layer_lib
from jaxbn import model_layers, nnx_variables
from jaxbn.core import running
from jaxbn.folding import program
from jaxbn.folding.merging import Affine
from jaxbn.folding.nnx_layer import Folded, FoldedBatchNorm
from jaxbn.folding.program import Seen
from jaxbn.folding.report import FoldedLayer, Report
from jaxbn.nnx import BatchNorm


def fold(model: nnx.Module, example: Any, call: Any) -> tuple[nnx.Module, Report]:
    """Returns a folded copy of the model, and the report; see `jaxbn.fold`."""
    copy = nnx.clone(model)
    copy.eval()
    layers: dict[str, Seen] = {}
    left: list[FoldedLayer] = []

    def replaced(path: tuple[Any, ...], node: Any) -> Any:
        name = "/".join(map(str, path))
        why = _why_not(node)
        if why:
            left.append(FoldedLayer(name, "left", None, why))
        if why or not isinstance(node, BatchNorm):
            return node
        layers[name] = Seen(name, node.axis, node.activation, _affine(node))
        return as_affine(name, node)

    graph, state = nnx.split(nnx.recursive_map(replaced, copy))
    parameters = {
        "/".join(map(str, path))
        for path, variable in nnx.to_flat_state(state)
        if isinstance(variable, nnx.Param)
    }

    def run(state: Any, batch: Any) -> Any:
        before = {id(leaf) for leaf in jax.tree.leaves(state)}
        model = nnx.merge(graph, state)
        made = call(model, batch)
        after = jax.tree.leaves(nnx.state(model))
        return made, [leaf for leaf in after if id(leaf) not in before]

    scales = {"/".join(filter(None, (path, "scale"))): s for path, s in layers.items()}
    found = program.fold(run, state, example, scales, parameters.__contains__)
    new = nnx.merge(graph, found.tree)
    for path, module in nnx.iter_modules(new):
        affine = found.affines.get("/".join(map(str, path)))
        if affine is not None and isinstance(module, FoldedBatchNorm):
            module.scale = nnx.data(_variable(affine.scale))
            module.bias = nnx.data(_variable(affine.shift))
    return new, Report((*found.report.layers, *left))


def _why_not(node: Any) -> str:
    """Returns why a layer must stay; empty for other layers and other modules."""
    if model_layers.is_flax(node):
        return "it is Flax's; import `BatchNorm` from `jaxbn.nnx`"
    if isinstance(node, BatchNorm) and type(node).__call__ is not BatchNorm.__call__:
        return f"`{type(node).__name__}` has a `__call__` of its own"
    return ""


def _variable(part: Any) -> Folded | None:
    return None if part is None else Folded(jnp.asarray(part))


def as_affine(path: str, norm: Any) -> FoldedBatchNorm:
    """Returns a layer as a scale and a bias, for evaluation.

    It is a function `make` for `jaxbn.replace`.

    Args:
      path: ignored.
      norm: a layer of jaxbn or Flax, with its running statistics.
    """
    del path
    affine = _affine(norm)
    return FoldedBatchNorm(norm, jnp.asarray(affine.scale), jnp.asarray(affine.shift))


def _affine(norm: Any) -> Affine:
    scale, bias = (
        None if part is None else part[...] for part in (norm.scale, norm.bias)
    )
    if isinstance(norm, BatchNorm):
        state = nnx_variables.read(norm, layer_lib.state_type(norm))
        stats = layer_lib.estimator(norm).estimate(state)
    else:
        stats = running.BatchStats(norm.mean[...], norm.var[...])
    return program.affine_of(stats, scale, bias, norm.epsilon)
