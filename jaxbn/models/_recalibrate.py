"""`recalibrate`: passes over the batches, for all layers together or each in turn."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn import estimators, linen
from jaxbn import nnx as jaxbn_nnx
from jaxbn._core import moments as moments_lib
from jaxbn._core import running
from jaxbn._layers import accumulation, switches
from jaxbn.models import _hooks, _layers_by_path
from jaxbn.models._hooks import LayerCall
from jaxbn.models._layers_by_path import Path

Batches = Iterable[Any] | Callable[[], Iterable[Any]]
Pooling = Literal["mean", "pooled"]
MomentsByLayer = dict[Path, moments_lib.Moments]

# A variable of a layer; True makes the layer normalise by its running statistics.
_FLAG = "evaluate"
_NUMBERS = itertools.count()


def recalibrate(
    model: nn.Module | nnx.Module,
    variables: Mapping[str, Any] | None,
    batches: Batches,
    call: Callable[[Any, Any], Any],
    *,
    pooling: Pooling = "mean",
    layer_by_layer: bool = False,
    rngs: Any = None,
    progress: bool = False,
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
      layer_by_layer: False takes one pass over the batches for all layers. The layers
        before a layer then normalise by the statistics of each batch, as in training.
        True takes one pass for each layer, in the order of their first calls. The
        layers before it then normalise by their new running statistics, so that it gets
        the input that it will get in inference. A layer that is called twice has one
        pass, and so have all layers of one `nn.scan`.
      rngs: keys for the random streams of a Linen model, such as dropout. They are the
        same for every batch.
      progress: show a progress bar of the batches; needs tqdm.

    Returns:
      `variables` with a new `batch_stats` of the same structure, shapes and dtypes; or
      a copy of the NNX model.

    Raises:
      ValueError: if there is no batch, if no layer took part, if `pooling` is unknown,
        or if `variables` are missing, or given with an NNX model. Also if a layer is
        not jaxbn's, or is inside an `nn.scan` or `nn.vmap` whose `variable_axes` lack
        `batch_moments`.
      TypeError: if `batches` is one mapping, or if it can be read only once and
        `layer_by_layer` is True.
      ModuleNotFoundError: if `progress` is True and tqdm is not installed.

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
    if layer_by_layer and not callable(batches) and iter(batches) is batches:
        raise TypeError(
            "`batches` must be read once per layer with `layer_by_layer=True`, got "
            f"a {type(batches).__name__}, which can be read only once; give a list, or "
            "a function that returns the batches anew."
        )
    given: Any = variables
    if isinstance(model, nnx.Module):
        graph, given = nnx.split(model)
        source = _NnxModel(graph, call)
    else:
        source = _LinenModel(model, call, rngs)
    with _bar(batches) if progress else contextlib.nullcontext() as bar:
        found = _Passes(source, pooling, batches, bar).over(given, layer_by_layer)
    if isinstance(source, _NnxModel):
        return nnx.merge(source.graph, found, copy=True)
    return found


class _Passes:
    """Passes over the same batches."""

    def __init__(self, source: Any, pooling: Any, batches: Batches, bar: Any):
        self.source, self.pooling = source, pooling
        self.batches, self.bar = batches, bar

        @jax.jit
        def add(totals: MomentsByLayer, given: Any, batch: Any, flags: Any):
            found = source.moments(given, batch, flags)
            return {path: _add(pooling, totals[path], found[path]) for path in found}

        self.add = add
        self.nothing: MomentsByLayer = {}  # Zeros for every layer.
        self.order: tuple[Path, ...] = ()

    def over(self, given: Any, layer_by_layer: bool) -> Any:
        """Returns the variables or the state with the statistics of the batches."""
        totals = self._totals(given, layer_by_layer, ())
        moving = {path: each for path, each in totals.items() if jnp.any(each.count)}
        if not moving:
            raise ValueError(
                "`call` must run `BatchNorm` layers of jaxbn in training mode, got "
                "none that updates its statistics; are they frozen?"
            )
        if not layer_by_layer:
            return self.source.replaced(given, moving, self.pooling)
        order = [path for path in self.order if path in moving]
        if self.bar is not None:
            self.bar.total = self.bar.n * len(order)
            self.bar.refresh()
        for place, path in enumerate(order):
            if place:
                totals = self._totals(given, layer_by_layer, order[:place])
            given = self.source.replaced(given, {path: totals[path]}, self.pooling)
        return given

    def _totals(
        self, given: Any, layer_by_layer: bool, done: Sequence[Path]
    ) -> MomentsByLayer:
        """Returns the moments of all batches together, by layer.

        The layers in `done` normalise by their running statistics.
        """
        totals: MomentsByLayer | None = None
        flags: Mapping[Path, jax.Array] = {}
        for batch in self._batches():
            if not self.nothing:
                self._look(given, batch, layer_by_layer)
            if totals is None:
                totals = self.nothing
                if layer_by_layer:
                    flags = {
                        path: jnp.full(each.count.shape, path in done)
                        for path, each in self.nothing.items()
                    }
            totals = self.add(totals, given, batch, flags)
            if self.bar is not None:
                jax.block_until_ready(totals)
                self.bar.update()
        if totals is None:
            raise ValueError("`batches` must hold at least one batch, got none.")
        return totals

    def _look(self, given: Any, batch: Any, layer_by_layer: bool) -> None:
        """Finds the layers of the model, and their order if it is needed."""
        shapes = jax.eval_shape(self.source.moments, given, batch, {})
        self.nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        if layer_by_layer:
            self.order = self.source.order(given, batch)

    def _batches(self) -> Iterator[Any]:
        return iter(self.batches() if callable(self.batches) else self.batches)


def _bar(batches: Batches) -> Any:
    """Returns a progress bar for one pass; later passes make it longer."""
    import tqdm

    total = len(batches) if hasattr(batches, "__len__") else None  # type: ignore
    return tqdm.tqdm(total=total, desc="recalibrate", unit="batch")


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

    def moments(
        self, variables: Mapping[str, Any], batch: Any, flags: Mapping[Path, jax.Array]
    ) -> MomentsByLayer:
        """Returns the moments of every layer that would update its statistics."""
        with _hooks.hooked_linen(_evaluate_linen, (linen.BatchNorm,)):
            return self._moments(variables, batch, flags)

    def order(self, variables: Mapping[str, Any], batch: Any) -> tuple[Path, ...]:
        """Returns the paths of all layers, in the order of their first calls."""
        paths: dict[Path, None] = {}

        def note(call: LayerCall) -> jax.Array:
            paths[call.path] = None
            return call.proceed()

        def run(variables: Any, batch: Any) -> MomentsByLayer:
            with _hooks.hooked_linen(note, (linen.BatchNorm,)):
                # The name of this collection is new, so that `nn.jit` traces again.
                return self._moments(variables, batch, {}, f"order {next(_NUMBERS)}")

        jax.eval_shape(run, variables, batch)
        return tuple(paths)

    def replaced(
        self, variables: Mapping[str, Any], totals: MomentsByLayer, pooling: Pooling
    ) -> Any:
        """Returns the variables with mean and variance of these layers replaced."""
        stats = variables["batch_stats"]
        for path, total in totals.items():
            stats = _replaced(stats, path, path, total, pooling)
        kind: Any = type(variables)
        return kind({**variables, "batch_stats": stats})

    def _moments(self, variables, batch, flags, *mutable: str) -> MomentsByLayer:
        name = accumulation.NAME
        given = {each: tree for each, tree in variables.items() if each != name}
        others = [each for each in given if each != "params"]
        none = accumulation.begin_accumulation(given.get("batch_stats", {}))
        given[name] = _with_flags(none, flags)
        # Other collections that the model writes are dropped.
        with _hooks.every_layer_accumulates():
            _, written = self.model.apply(
                given,
                batch,
                method=self.call,
                mutable=[name, *others, *mutable],
                rngs=self.rngs,
            )
        return accumulation.moments_of(written.get(name, {}))


def _evaluate_linen(call: LayerCall) -> jax.Array:
    layer = call.layer

    def evaluated() -> jax.Array:
        alone = layer.clone(parent=None, name=None, use_running_average=None)
        given = dict(layer.variables)
        given.pop(accumulation.NAME)
        # A subclass may have a call of its own.
        options = {"method": linen.BatchNorm.__call__, **_residual(call)}
        return alone.apply(given, call.x, use_running_average=True, **options)

    return _choose(call, layer.get_variable(accumulation.NAME, _FLAG), evaluated)


def _with_flags(
    batch_moments: dict[str, Any], flags: Mapping[Path, jax.Array]
) -> dict[str, Any]:
    """Returns the collection with the flag of each layer among its variables."""
    for path, flag in flags.items():
        inner = batch_moments
        for name in path:
            inner = inner[name]
        inner[_FLAG] = flag
    return batch_moments


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

    def moments(
        self, state: Any, batch: Any, flags: Mapping[Path, jax.Array]
    ) -> MomentsByLayer:
        """Returns the moments of every layer that would update its statistics."""
        model, layers = self._model(state)
        for path, layer in layers.items():
            layer.begin_accumulation()
            if flags:
                setattr(layer, _FLAG, nnx.Variable(flags[path]))
        with _hooks.hooked_nnx(_evaluate_nnx, model, (jaxbn_nnx.BatchNorm,)):
            self.call(model, batch)
        return {
            path: each.accumulated.get_value().moments for path, each in layers.items()
        }

    def order(self, state: Any, batch: Any) -> tuple[Path, ...]:
        """Returns the paths of all layers, in the order of their first calls."""
        paths: dict[Path, None] = {}

        def note(call: LayerCall) -> jax.Array:
            paths[call.path] = None
            return call.proceed()

        def run(state: Any, batch: Any) -> None:
            model, _ = self._model(state)
            with _hooks.hooked_nnx(note, model, (jaxbn_nnx.BatchNorm,)):
                self.call(model, batch)

        jax.eval_shape(run, state, batch)
        return tuple(paths)

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


def _evaluate_nnx(call: LayerCall) -> jax.Array:
    layer = call.layer
    flag = getattr(layer, _FLAG, None)

    def evaluated() -> jax.Array:
        frozen = layer.frozen
        layer.frozen = switches.Frozen(statistics=True, updates=True)
        try:
            # This call bypasses the hook and the calls of subclasses.
            evaluate = _hooks.nnx_call(jaxbn_nnx.BatchNorm)
            return evaluate(layer, call.x, **_residual(call))
        finally:
            layer.frozen = frozen

    return _choose(call, None if flag is None else flag[...], evaluated)


def _choose(
    call: LayerCall, flag: jax.Array | None, evaluated: Callable[[], jax.Array]
) -> jax.Array:
    """Returns the output of evaluation if the flag is True, and else of training.

    The flags of all layers under one scan are equal.
    """
    trained = call.proceed()
    return trained if flag is None else jnp.where(flag.ravel()[0], evaluated(), trained)


def _residual(call: LayerCall) -> dict[str, Any]:
    given = call.options.get("residual")
    return {} if given is None else {"residual": given}
