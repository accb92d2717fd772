"""Folding of an NNX model."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn._core import arguments
from jaxbn._layers import folded
from jaxbn.models import _layers_by_path
from jaxbn.models._fold import merge
from jaxbn.models._fold.merge import Affine, FoldedLayer, LayerInModel, Report
from jaxbn.nnx import BatchNorm


class FoldedVariable(nnx.BatchStat):
    """A remaining scale or bias: not trained, and split like statistics."""


class FoldedBatchNorm(nnx.Module):
    """The layer `activation(x * scale + bias + residual)`, called as `BatchNorm` is.

    Args:
      norm: the layer of jaxbn that it replaces.
      scale: `[C]`, or None for 1.
      bias: `[C]`, or None for 0.
    """

    def __init__(
        self,
        norm: BatchNorm,
        scale: jax.typing.ArrayLike | None,
        bias: jax.typing.ArrayLike | None,
    ):
        self.set_affine(scale, bias)
        self.axis = norm.axis
        self.activation = norm.activation
        self.dtype = norm.dtype
        self.promote_dtype = norm.promote_dtype
        given = norm.mean, norm.var, norm.scale, norm.bias
        self.promoted = jnp.result_type(*(g.dtype for g in given if g is not None))
        self.num_features = norm.num_features
        self.use_running_average = True

    def __call__(
        self,
        x: jax.typing.ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: jax.typing.ArrayLike | None = None,
        residual: jax.typing.ArrayLike | None = None,
        update_running_average: bool | None = None,
        factors: Any = None,
    ) -> jax.Array:
        """Returns the output of the layer in evaluation.

        Args:
          x: `[N, ..., C]`.
          use_running_average: overrides the attribute; must be True.
          mask: ignored, as evaluation does not need it.
          residual: an array of the shape of `x`, added before the activation.
          update_running_average: must not be True.
          factors: ignored, as evaluation does not need them.

        Raises:
          ValueError: if it is called for training.
        """
        del mask, factors
        if use_running_average is None:
            use_running_average = self.use_running_average
        x = jnp.asarray(x)
        arrays: Any = x, jnp.zeros(0, self.promoted)
        return folded.apply(
            x,
            None if self.scale is None else self.scale[...],
            None if self.bias is None else self.bias[...],
            use_running_average=use_running_average,
            update_running_average=bool(update_running_average),
            axis=self.axis,
            residual=residual,
            activation=self.activation,
            dtype=self.promote_dtype(arrays, dtype=self.dtype)[0].dtype,
        )

    def set_affine(
        self, scale: jax.typing.ArrayLike | None, bias: jax.typing.ArrayLike | None
    ) -> None:
        """Sets the scale and the bias, `[C]` each; None for 1 and 0."""
        self.scale, self.bias = (
            nnx.data(None if part is None else FoldedVariable(jnp.asarray(part)))
            for part in (scale, bias)
        )

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the attribute if it is given; `nnx.view` calls this method.

        Args:
          use_running_average: must be True when the layer is called.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


def fold_nnx(model: nnx.Module, example: Any, call: Any) -> tuple[nnx.Module, Report]:
    """Returns a folded copy of the model, and the report; see `jaxbn.fold`."""
    copy = nnx.clone(model)
    copy.eval()
    layers: dict[str, LayerInModel] = {}
    left: list[FoldedLayer] = []

    def replaced(path: tuple[Any, ...], node: Any) -> Any:
        name = "/".join(map(str, path))
        why = _why_not(node)
        if why:
            left.append(FoldedLayer(name, "left", None, why))
        if why or not isinstance(node, BatchNorm):
            return node
        affine = _affine(node)
        layers[name] = LayerInModel(name, node.axis, affine)
        return FoldedBatchNorm(node, *map(jnp.asarray, affine))

    graph, state = nnx.split(nnx.recursive_map(replaced, copy))
    parameters = {
        "/".join(map(str, path))
        for path, variable in nnx.to_flat_state(state)
        if isinstance(variable, nnx.Param)
    }

    def run(state: Any, batch: Any) -> Any:
        before = {id(leaf) for leaf in jax.tree.leaves(state)}
        model = nnx.merge(graph, state)
        outputs = call(model, batch)
        after = jax.tree.leaves(nnx.state(model))
        return outputs, [leaf for leaf in after if id(leaf) not in before]

    scales = {"/".join(filter(None, (path, "scale"))): s for path, s in layers.items()}
    found = merge.fold_arrays(run, state, example, scales, parameters.__contains__)
    new = nnx.merge(graph, found.tree)
    for path, module in nnx.iter_modules(new):
        affine = found.affines.get("/".join(map(str, path)))
        if affine is not None and isinstance(module, FoldedBatchNorm):
            module.set_affine(affine.scale, affine.shift)
    return new, Report((*found.report.layers, *left))


def _why_not(node: Any) -> str:
    """Returns why a layer cannot be folded; empty if it can, and for other modules."""
    if _layers_by_path.is_flax(node):
        return "it is Flax's; import `BatchNorm` from `jaxbn.nnx`"
    if isinstance(node, BatchNorm) and type(node).__call__ is not BatchNorm.__call__:
        return f"`{type(node).__name__}` has a `__call__` of its own"
    if isinstance(node, BatchNorm) and arguments.infers(node.variant):
        return merge.NOT_CONSTANT
    return ""


def _affine(norm: BatchNorm) -> Affine:
    scale, bias = (
        None if part is None else part[...] for part in (norm.scale, norm.bias)
    )
    mean, var = norm.mean[...], norm.var[...]
    return merge.affine_of(mean, var, scale, bias, norm.epsilon)
