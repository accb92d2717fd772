"""`recalibrate`: running statistics of all layers from one pass over batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn import estimators
from jaxbn import nnx as jaxbn_nnx
from jaxbn._core import moments as moments_lib
from jaxbn._core import running
from jaxbn._layers import accumulation
from jaxbn.models import _hooks, _layers_by_path
from jaxbn.models._layers_by_path import Path

Batches = Iterable[Any] | Callable[[], Iterable[Any]]
Pooling = Literal["mean", "pooled"]
MomentsByLayer = dict[Path, moments_lib.Moments]


def recalibrate(
    model: nn.Module | nnx.Module,
    variables: Mapping[str, Any] | None,
    batches: Batches,
    call: Callable[[Any, Any], Any],
    *,
    pooling: Pooling = "mean",
    rngs: Any = None,
) -> Any:
    """Computes running statistics from batches, for all layers of a model.

    Each batch counts by its number of valid elements in each channel. If a channel is
    not finite in a batch, that batch does not count for it. Arrays that are sharded
    under jit give the statistics of the whole batch.

    Linen layers that normalise by running statistics keep them. So do all layers with
    `update_running_average=False`. Further state of an estimator, such as its weight,
    stays unchanged.

    To get the statistics of averaged weights (EMA, SWA), give these weights as
    `params`.

    Args:
      model: a Linen model with layers of `jaxbn.linen.BatchNorm`, or an NNX model with
        layers of `jaxbn.nnx.BatchNorm`. It is not changed.
      variables: all variables that `model.apply` takes, which are not changed; None for
        an NNX model.
      batches: an iterable of batches of any kind, or a function without arguments that
        returns one. Each row of a single array is a batch. Batches of one shape are
        compiled once.
      call: called with the model, its variables bound, and a batch. It runs the model
        in training mode, for instance
        `lambda model, batch: model(batch["x"], train=True)`. An NNX model is in that
        mode already.
      pooling: "mean" takes the mean of the batches' unbiased variances, as in the
        paper. "pooled" takes the unbiased variance of all examples together, which also
        contains the spread of the batches' means.
      rngs: keys for the random streams of a Linen model, such as dropout. They are the
        same for every batch.

    Returns:
      `variables` with a new `batch_stats` of the same structure, shapes and dtypes; or
      a copy of the NNX model.

    Raises:
      ValueError: if there is no batch, if no layer took part, if `pooling` is unknown,
        or if `variables` are missing, or given with an NNX model. Also if a layer is
        not jaxbn's, or is inside an `nn.scan` or `nn.vmap` whose `variable_axes` lack
        `batch_moments`.
      TypeError: if `batches` is one mapping.

    Example:
      >>> from jaxbn.linen import BatchNorm
      >>> layer = BatchNorm()
      >>> x = jnp.array([[1.0], [3.0], [5.0], [7.0]])
      >>> variables = layer.init(jax.random.key(0), x, use_running_average=True)
      >>> call = lambda model, x: model(x, use_running_average=False)
      >>> new = recalibrate(layer, variables, [x[:2], x[2:]], call)
      >>> new["batch_stats"]["mean"], new["batch_stats"]["var"]
      (Array([4.], dtype=float32), Array([2.], dtype=float32))
      >>> new = recalibrate(layer, variables, [x], call)
      >>> round(float(new["batch_stats"]["var"][0]), 3)
      6.667

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Algorithm 2; Wu and Johnson,
      arXiv:2105.07576, Section 3.
    """
    names = get_args(Pooling)
    if pooling not in names:
        raise ValueError(f"`pooling` must be one of {names}, got {pooling!r}.")
    _layers_by_path.check_variables(model, variables)
    if isinstance(batches, Mapping):
        raise TypeError(
            f"`batches` must be several batches, got one {type(batches).__name__}; "
            "give `[batch]`."
        )
    given: Any = variables
    if isinstance(model, nnx.Module):
        graph, given = nnx.split(model)
        source = _NnxModel(graph, call)
    else:
        source = _LinenModel(model, call, rngs)
    totals = _totals(source, pooling, given, batches)
    moving = {path: each for path, each in totals.items() if jnp.any(each.count)}
    if not moving:
        raise ValueError(
            "`call` must run `BatchNorm` layers of jaxbn in training mode, got "
            "none that updates its statistics; are they frozen?"
        )
    found = source.replaced(given, moving, pooling)
    if isinstance(source, _NnxModel):
        return nnx.merge(source.graph, found, copy=True)
    return found


def _totals(source: Any, pooling: Any, given: Any, batches: Batches) -> MomentsByLayer:
    """Returns the moments of all batches together, by layer."""

    @jax.jit
    def add(totals: MomentsByLayer, given: Any, batch: Any) -> MomentsByLayer:
        found = source.moments(given, batch)
        return {path: _add(pooling, totals[path], found[path]) for path in found}

    totals = None
    for batch in batches() if callable(batches) else batches:
        if totals is None:
            shapes = jax.eval_shape(source.moments, given, batch)
            totals = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        totals = add(totals, given, batch)
    if totals is None:
        raise ValueError("`batches` must hold at least one batch, got none.")
    return totals


def _add(
    pooling: Pooling, total: moments_lib.Moments, batch: moments_lib.Moments
) -> moments_lib.Moments:
    """Adds the moments of one batch to the total.

    Channels of the batch that are not finite do not count.

    Args:
      pooling: "mean" averages the means and the unbiased variances, weighted by count.
        "pooled" takes the moments of all elements together.
      total: the moments of the batches before; zeros if there are none.
      batch: the moments of one batch.
    """
    usable = jnp.isfinite(batch.mean) & jnp.isfinite(batch.var)
    batch = jax.tree.map(lambda part: jnp.where(usable, part, 0), batch)
    if pooling == "pooled":
        return moments_lib.merge_moments(total, batch)
    unbiased = batch.var * batch.count / jnp.maximum(batch.count - 1, 1)
    # A batch with one value for a channel has no variance of its own.
    weight = jnp.where(batch.count > 1, batch.count, 0)
    count = total.count + weight
    share = weight / jnp.maximum(count, 1)
    return moments_lib.Moments(
        count,
        total.mean + share * (batch.mean - total.mean),
        total.var + share * (unbiased - total.var),
        total.tail,
    )


def _population(
    pooling: Pooling, mean: jax.Array, var: jax.Array, total: moments_lib.Moments
) -> dict[str, jax.Array]:
    """Returns the estimate from the batches; a channel without one keeps its values.

    Mean and variance are in float32 or wider, and complex after complex batches,
    whatever the old ones were.
    """
    old = estimators.BatchStats(mean, var)
    unbiased = pooling == "pooled"
    new_mean, new_var, count = running.of_batch(old, total, unbiased)
    usable = running.is_usable(new_mean, new_var, count)
    return {
        "mean": jnp.where(usable, new_mean, mean),
        "var": jnp.where(usable, new_var, var),
    }


class _LinenModel(NamedTuple):
    """A Linen model without its variables; its methods take the variables."""

    model: nn.Module
    call: Callable[[Any, Any], Any]
    rngs: Any

    def moments(self, variables: Mapping[str, Any], batch: Any) -> MomentsByLayer:
        """Returns the moments of every layer that would update its statistics."""
        name = accumulation.NAME
        given = {each: tree for each, tree in variables.items() if each != name}
        # Other collections that the model writes are dropped.
        others = [each for each in given if each != "params"]
        given[name] = accumulation.begin_accumulation(given.get("batch_stats", {}))
        with _hooks.every_layer_accumulates():
            _, written = self.model.apply(
                given,
                batch,
                method=self.call,
                mutable=[name, *others],
                rngs=self.rngs,
            )
        return accumulation.moments_of(written.get(name, {}))

    def replaced(
        self, variables: Mapping[str, Any], totals: MomentsByLayer, pooling: Pooling
    ) -> Any:
        """Returns the variables with mean and variance of these layers replaced."""
        stats = variables["batch_stats"]
        for path, total in totals.items():
            stats = _replaced(stats, path, path, total, pooling)
        kind: Any = type(variables)
        return kind({**variables, "batch_stats": stats})


def _replaced(
    tree: Any, layer: Path, path: Path, total: moments_lib.Moments, pooling: Pooling
) -> Any:
    """Returns the collection with mean and variance of one layer replaced.

    Args:
      tree: the collection, or a part of it.
      layer: the path of the layer.
      path: the path from the part of the collection to the layer.
      total: the moments of all batches.
      pooling: as in `recalibrate`.
    """
    if path:
        inner = _replaced(tree[path[0]], layer, path[1:], total, pooling)
        return type(tree)({**tree, path[0]: inner})
    accumulation.check_shapes("/".join(layer), total.mean, tree["mean"])
    new = _population(pooling, tree["mean"], tree["var"], total)
    return type(tree)({**tree, **new})


class _NnxModel(NamedTuple):
    """An NNX model without its state; its methods take the state."""

    graph: Any
    call: Callable[[Any, Any], Any]

    def moments(self, state: Any, batch: Any) -> MomentsByLayer:
        """Returns the moments of every layer that would update its statistics."""
        model, layers = self._model(state)
        for layer in layers.values():
            layer.begin_accumulation()
        self.call(model, batch)
        return {
            path: each.accumulated.get_value().moments for path, each in layers.items()
        }

    def replaced(self, state: Any, totals: MomentsByLayer, pooling: Pooling) -> Any:
        """Returns the state with mean and variance of these layers replaced."""
        model, layers = self._model(state)
        for path, total in totals.items():
            stats = layers[path].batch_stats
            new = _population(pooling, stats.mean, stats.var, total)
            layers[path].store(stats._replace(**new))
        return nnx.state(model)

    def _model(self, state: Any) -> tuple[nnx.Module, dict[Path, Any]]:
        """Returns a model in training mode, and its layers that may be updated."""
        model = nnx.merge(self.graph, state, copy=True)
        model.train()
        _layers_by_path.check_collectable(model)
        layers = _layers_by_path.nnx_layers(model, (jaxbn_nnx.BatchNorm,))
        moving = {
            path: layer
            for path, layer in layers.items()
            if layer.update_running_average is not False
        }
        return model, moving
