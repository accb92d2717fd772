"""`fold` for models of Linen and NNX."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from flax import nnx

from jaxbn import model_layers
from jaxbn.folding import linen_model, nnx_model
from jaxbn.folding.report import Report


class Folded(NamedTuple):
    """A model without normalisation, and what became of every layer."""

    model: Any  # The variables of a Linen model, or an NNX model.
    report: Report


def fold(
    model: nn.Module | nnx.Module,
    variables: Mapping[str, Any] | None,
    example: Any,
    call: Callable[[Any, Any], Any],
    *,
    rngs: Any = None,
) -> Folded:
    """Folds Batch Normalization into the convolutions and dense layers beside it.

    In evaluation a layer multiplies every channel by a number and adds another. The
    first goes into the kernel of the layer before, the second into its bias or, where
    it has none, stays behind as a sum. Where no linear layer stands before, or its
    output is used elsewhere too, both go into the layer after, if that is linear, has a
    bias, pads nothing and computes in float32 or wider. Else both stay, as one
    multiplication and one sum.

    Which layers these are is read from the program of the model, through casts,
    reshapes and transposes: convolutions of any kind, and products of arrays.

    Args:
      model: a Linen or NNX model with layers of jaxbn; not changed.
      variables: all that `model.apply` takes, not changed; None for an NNX model.
      example: a batch as `call` takes it, or its shapes and dtypes.
      call: runs the model in evaluation, for instance
        `lambda model, x: model(x, train=False)`. An NNX model is in that mode already.
        What it computes stays the same; other methods of the model may not.
      rngs: keys for the random streams of a Linen model.

    Returns:
      What evaluates to the same up to rounding, and a report to print. For a Linen
      model, variables for the same `model.apply`: those without what was folded, and
      what is left of it in the collection `folded`. For NNX, a copy of the model, in
      evaluation mode. Neither can be trained.

    Raises:
      ValueError: if `call` runs the model in training mode or no layer of jaxbn, or if
        `variables` are missing, or given with an NNX model.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbn.linen import BatchNorm
      >>> net = nn.Sequential([nn.Dense(4), BatchNorm(use_running_average=True)])
      >>> variables = net.init(jax.random.key(0), jnp.ones((2, 3)))
      >>> new, report = fold(net, variables, jnp.ones((2, 3)), lambda net, x: net(x))
      >>> print(report)
      layers_1  folded into layers_0
      >>> jax.tree.map(jnp.shape, new["params"])
      {'layers_0': {'bias': (4,), 'kernel': (3, 4)}}
    """
    model_layers.check_variables(model, variables)
    if isinstance(model, nnx.Module):
        new, report = nnx_model.fold(model, example, call)
    else:
        assert variables is not None
        new, report = linen_model.fold(model, variables, example, call, rngs)
    if not report.layers:
        raise ValueError(
            "`call` must run `BatchNorm` layers of jaxbn, got none; a model that is "
            "folded has none left."
        )
    return Folded(new, report)
