"""Tent: adapts scales and biases to test data by the entropy of the predictions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxbn.models import _layers_by_path
from jaxbn.models._layers_by_path import Where
from jaxbn.training import frozen_mask
from jaxbn.variants._test_time import TestTime
from jaxbn.variants._with_variant import with_variant


def entropy(logits: jax.Array) -> jax.Array:
    """Returns the entropy of the predicted distribution of each example, in nats.

    Args:
      logits: `[..., classes]`.

    Example:
      >>> entropy(jnp.zeros((1, 4))).round(3)
      Array([1.386], dtype=float32)
    """
    # A logit of -inf rules out a class; 0 times the logarithm must not be NaN there.
    lowest = jnp.finfo(logits.dtype).min / 4
    log_p = jax.nn.log_softmax(jnp.where(logits == -jnp.inf, lowest, logits))
    return -jnp.sum(jnp.exp(log_p) * log_p, -1)


class TentState(NamedTuple):
    """The variables of a Linen model that is adapted, and the optimiser's state.

    Example:
      >>> TentState({"params": {}}, ()).variables
      {'params': {}}
    """

    variables: Any
    opt_state: Any


class Tent(NamedTuple):
    """The two functions that adapt a Linen model; see `make_tent`.

    Attributes:
      init: returns the `TentState` of variables.
      step: from a state and a batch to the new state and the logits.

    Example:
      >>> make_tent(lambda variables, x: x, optax.sgd(0.1))._fields
      ('init', 'step')
    """

    init: Callable[[Any], TentState]
    step: Callable[[TentState, Any], tuple[TentState, jax.Array]]


def make_tent(
    run: Callable[[Any, Any], jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    prior: float = 0.0,
    where: Where = None,
) -> Tent:
    """Returns the functions that adapt a Linen model to unlabelled test data.

    A step normalises by the statistics of the test batch. The logits give the
    prediction, and the gradient of their mean entropy trains the scales and biases of
    the `BatchNorm` layers. Nothing else changes, neither the running statistics nor
    dropout.

    Args:
      run: returns the logits, `[N, classes]`, for variables and a batch, in evaluation
        mode, such as `lambda variables, x: model.apply(variables, x, train=False)`.
      optimizer: the optimiser of scales and biases.
      prior: as in `TestTime`.
      where: the layers that are adapted, as in `jaxbn.freeze`.

    Raises:
      ValueError: when called, if `where` matches no layer with a scale or a bias.

    Example:
      >>> import flax.linen as nn
      >>> from jaxbn.linen import BatchNorm
      >>> net = nn.Sequential([BatchNorm(use_running_average=True), nn.Dense(2)])
      >>> x = jax.random.normal(jax.random.key(0), (8, 3))
      >>> tent = make_tent(net.apply, optax.sgd(0.1))
      >>> state = tent.init(net.init(jax.random.key(1), x))
      >>> state, logits = tent.step(state, x)
      >>> logits.shape
      (8, 2)

    References:
      Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization,
      arXiv:2006.10726.
    """
    adapted = with_variant(run, TestTime(prior), where)

    def affine(variables: Any) -> dict[str, jax.Array]:
        """Returns the scales and biases by their paths."""
        stats = variables.get("batch_stats", {})
        chosen = frozen_mask(stats, where)(variables["params"])
        pairs = jax.tree_util.tree_leaves_with_path(variables["params"])
        flags = jax.tree.leaves(chosen)
        return {
            jax.tree_util.keystr(path): leaf
            for (path, leaf), flag in zip(pairs, flags, strict=True)
            if flag
        }

    def init(variables: Any) -> TentState:
        return TentState(variables, optimizer.init(affine(variables)))

    @jax.jit
    def step(state: TentState, batch: Any) -> tuple[TentState, jax.Array]:
        variables, trained = state.variables, affine(state.variables)

        def with_affine(values: dict[str, jax.Array]) -> Any:
            params = jax.tree_util.tree_map_with_path(
                lambda path, leaf: values.get(jax.tree_util.keystr(path), leaf),
                variables["params"],
            )
            kind: Any = type(variables)  # dict or FrozenDict
            return kind({**variables, "params": params})

        def loss(values: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            logits = adapted(with_affine(values), batch)
            return jnp.mean(entropy(logits)), logits

        grads, logits = jax.grad(loss, has_aux=True)(trained)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        new: Any = optax.apply_updates(trained, updates)
        return TentState(with_affine(new), opt_state), logits

    return Tent(init, step)


def nnx_tent(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    *,
    prior: float = 0.0,
    where: Where = None,
) -> tuple[nnx.Module, nnx.Optimizer]:
    """Returns a copy of an NNX model for `nnx_tent_step`, and its optimiser.

    The copy is in evaluation mode, and its layers have the variant `TestTime`. The
    optimiser updates their scales and biases.

    Args:
      model: the model, which is not changed.
      optimizer: as in `make_tent`, and so are the others.
      prior: as in `TestTime`.
      where: the layers that are adapted.

    Raises:
      ValueError: if `where` matches no layer with a scale or a bias.

    Example:
      >>> from jaxbn.nnx import BatchNorm
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(BatchNorm(3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs))
      >>> model, optimizer = nnx_tent(model, optax.sgd(0.1))
      >>> nnx_tent_step(model, optimizer, jnp.ones((8, 3))).shape
      (8, 2)
    """
    copy = with_variant(model, TestTime(prior), where)
    copy.eval()
    is_meant = _layers_by_path.as_predicate(where)
    paths = {
        path for path in _layers_by_path.nnx_layers(copy) if is_meant("/".join(path))
    }

    def of_layers(path: tuple[Any, ...], value: Any) -> bool:
        names = tuple(map(str, path))
        return names[:-1] in paths and names[-1] in ("scale", "bias")

    wrt = nnx.All(nnx.Param, of_layers)
    if not jax.tree.leaves(nnx.state(copy, wrt)):
        raise ValueError(
            f"The layers of {where!r} must have a scale or a bias, got none."
        )
    return copy, nnx.Optimizer(copy, optimizer, wrt=wrt)


@nnx.jit
def nnx_tent_step(
    model: Callable[[Any], jax.Array], optimizer: nnx.Optimizer, batch: Any
) -> jax.Array:
    """Adapts a model of `nnx_tent` in place, and returns the logits, `[N, classes]`.

    See `make_tent`.

    Args:
      model: called with the batch, it returns the logits.
      optimizer: the optimiser of `nnx_tent`.
      batch: the argument of the model.

    Example:
      See `nnx_tent`.

      >>> nnx_tent_step.__name__
      'nnx_tent_step'
    """

    def loss(model: Callable[[Any], jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = model(batch)
        return jnp.mean(entropy(logits)), logits

    wrt = nnx.DiffState(0, optimizer.wrt)
    (_, logits), grads = nnx.value_and_grad(loss, argnums=wrt, has_aux=True)(model)
    optimizer.update(model, grads)
    return logits
