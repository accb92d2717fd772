"""Folding an NNX model."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxbn import layer as layer_lib
from jaxbn.folding import program
from jaxbn.folding.merging import Affine
from jaxbn.folding.nnx_layer import Folded, FoldedBatchNorm
from jaxbn.folding.program import Seen
from jaxbn.folding.report import FoldedLayer, Report
from jaxbn.nnx import BatchNorm


def fold(model: nnx.Module, example: Any, call: Any) -> tuple[nnx.Module, Report]:
    """A folded copy of the model, and the report; see `jaxbn.fold`."""
    copy = nnx.clone(model)
    copy.eval()
    layers: dict[str, Seen] = {}
    left: list[FoldedLayer] = []

    def replaced(path: tuple[Any, ...], node: Any) -> Any:
        name = "/".join(map(str, path))
        if isinstance(node, nnx.BatchNorm):
            reason = "it is Flax's; import `BatchNorm` from `jaxbn.nnx`"
            left.append(FoldedLayer(name, "left", None, reason))
        if not isinstance(node, BatchNorm):
            return node
        layers[name] = Seen(name, node.axis, node.activation, _affine(node))
        return as_affine(name, node)

    copy = nnx.recursive_map(replaced, copy)
    graph, state = nnx.split(copy)

    def run(state: Any, batch: Any) -> Any:
        return call(nnx.merge(graph, state), batch)

    scales = {"/".join(filter(None, (path, "scale"))): s for path, s in layers.items()}
    found = program.fold(run, state, example, scales)
    new = nnx.merge(graph, found.tree)
    for path, module in nnx.iter_modules(new):
        affine = found.affines.get("/".join(map(str, path)))
        if affine is not None and isinstance(module, FoldedBatchNorm):
            module.scale = nnx.data(_variable(affine.scale))
            module.bias = nnx.data(_variable(affine.shift))
    return new, Report((*found.report.layers, *left))


def _variable(part: Any) -> Folded | None:
    return None if part is None else Folded(jnp.asarray(part))


def as_affine(path: str, norm: BatchNorm) -> FoldedBatchNorm:
    """The layer as a scale and a bias, for evaluation: a function for `jaxbn.replace`.

    Args:
      path: not needed.
      norm: a layer of jaxbn; its running statistics are what it is made of.
    """
    del path
    affine = _affine(norm)
    return FoldedBatchNorm(norm, jnp.asarray(affine.scale), jnp.asarray(affine.shift))


def _affine(norm: BatchNorm) -> Affine:
    scale, bias = (
        None if part is None else part[...] for part in (norm.scale, norm.bias)
    )
    stats = layer_lib.estimator(norm).estimate(norm._state())
    return program.affine_of(stats, scale, bias, norm.epsilon)
