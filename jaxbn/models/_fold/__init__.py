"""`fold` for models of Linen and NNX."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from flax import nnx

from jaxbn.models import _layers_by_path
from jaxbn.models._fold.linen_model import fold_linen
from jaxbn.models._fold.merge import Report
from jaxbn.models._fold.nnx_model import fold_nnx


class Folded(NamedTuple):
    """A model without normalisation, and a report on every layer."""

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
    """Folds Batch Normalization into the convolutions and dense layers before it.

    In evaluation a layer multiplies every channel by a scale and adds a shift. The
    scale goes into the kernel of the layer before. The shift goes into the bias of that
    layer; if it has none, the shift stays as a sum. If there is no linear layer before,
    or if its output is also used elsewhere, both stay, as one multiplication and one
    sum.

    `fold` finds these layers in the program of the model, through casts, reshapes and
    transposes. They are convolutions of any kind, and products of arrays.

    Args:
      model: a Linen or NNX model with layers of jaxbn, which is not changed.
      variables: all variables that `model.apply` takes, which are not changed; None for
        an NNX model.
      example: a batch as `call` takes it, or its shapes and dtypes.
      call: runs the model in evaluation mode, for instance
        `lambda model, x: model(x, train=False)`. An NNX model is in that mode already.
        The result of `call` stays the same; other methods of the model may change.
      rngs: keys for the random streams of a Linen model.

    Returns:
      The folded model and a report to print. The model computes the same up to
      rounding, but cannot be trained. For Linen it is a tree of variables for the same
      `model.apply`, without the folded variables. The scales and biases that remain are
      in the collection `folded`. For NNX it is a copy of the model in evaluation mode.

    Raises:
      ValueError: if `call` runs the model in training mode, if it runs no layer of
        jaxbn, or if `variables` are missing, or given with an NNX model.

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
    _layers_by_path.check_variables(model, variables)
    if isinstance(model, nnx.Module):
        new, report = fold_nnx(model, example, call)
    else:
        assert variables is not None
        new, report = fold_linen(model, variables, example, call, rngs)
    if not report.layers:
        raise ValueError(
            "`call` must run `BatchNorm` layers of jaxbn, got none; a model that is "
            "folded has none left."
        )
    return Folded(new, report)
