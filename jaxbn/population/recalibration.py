"""`recalibrate`: passes over the batches, for all layers together or each in turn."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn import model_layers, optional
from jaxbn.population import pooling as pooling_lib
from jaxbn.population import sources

Batches = Iterable[Any] | Callable[[], Iterable[Any]]


def recalibrate(
    model: nn.Module | nnx.Module,
    variables: Mapping[str, Any] | None,
    batches: Batches,
    call: Callable[[Any, Any], Any],
    *,
    pooling: pooling_lib.Pooling = "mean",
    layer_by_layer: bool = False,
    rngs: Any = None,
    progress: bool = False,
) -> Any:
    """Computes running statistics from batches, for all layers of a model.

    Each batch counts by its number of valid elements in each channel. If a channel is
    not finite in a batch, that batch does not count for it. Arrays that are sharded
    under jit give the statistics of the whole batch.

    Linen layers that normalise by running statistics keep them. So do all layers with
    `update_running_average=False`. Other state of an estimator, beside mean and
    variance, stays too, and training goes on with that weight.

    To get the statistics of averaged weights (EMA, SWA), give these as `params`.

    Args:
      model: a Linen model with layers of `jaxbn.linen.BatchNorm`, or an NNX model with
        layers of `jaxbn.nnx.BatchNorm`. It is not changed.
      variables: all variables that `model.apply` takes, which are not changed; None for
        an NNX model.
      batches: an iterable of batches of any kind, or a function without arguments that
        returns one. The batches of a single array are its rows. Batches of one shape
        are compiled once.
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
    names = get_args(pooling_lib.Pooling)
    if pooling not in names:
        raise ValueError(f"`pooling` must be one of {names}, got {pooling!r}.")
    model_layers.check_variables(model, variables)
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
        source = sources.Nnx(graph, call)
    else:
        source = sources.Linen(model, call, rngs)
    with _bar(batches) if progress else contextlib.nullcontext() as bar:
        found = _Passes(source, pooling, batches, bar).over(given, layer_by_layer)
    if isinstance(source, sources.Nnx):
        return nnx.merge(source.graph, found, copy=True)
    return found


class _Passes:
    """Passes over the same batches."""

    def __init__(self, source: Any, pooling: Any, batches: Batches, bar: Any):
        self.source, self.batches, self.bar = source, batches, bar
        self.replace = functools.partial(pooling_lib.population, pooling)

        @jax.jit
        def add(totals: sources.Moments, given: Any, batch: Any, flags: Any):
            made = source.moments(given, batch, flags)
            return {
                path: pooling_lib.add(pooling, totals[path], made[path])
                for path in made
            }

        self.add = add
        self.nothing: sources.Moments = {}  # Zeros for every layer.
        self.order: tuple[model_layers.Path, ...] = ()

    def over(self, given: Any, layer_by_layer: bool) -> Any:
        """Returns the variables or the state with the statistics of the batches."""
        totals = self._totals(given, layer_by_layer, ())
        moving = {path: each for path, each in totals.items() if jnp.any(each.count)}
        if not moving:
            raise ValueError(
                "`call` must run `BatchNorm` layers of jaxbn in training mode, got "
                "none that moves its statistics; are they frozen?"
            )
        if not layer_by_layer:
            return self.source.replaced(given, moving, self.replace)
        order = [path for path in self.order if path in moving]
        if self.bar is not None:
            self.bar.total = self.bar.n * len(order)
            self.bar.refresh()
        for place, path in enumerate(order):
            if place:
                totals = self._totals(given, layer_by_layer, order[:place])
            given = self.source.replaced(given, {path: totals[path]}, self.replace)
        return given

    def _totals(self, given: Any, layer_by_layer: bool, done: Any) -> sources.Moments:
        """Returns the moments of all batches together, by layer.

        The layers in `done` normalise by their running statistics.
        """
        totals: sources.Moments | None = None
        flags: Mapping[model_layers.Path, jax.Array] = {}
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
    """Returns a progress bar of one pass; the first pass shows how many there are."""
    tqdm = optional.imported("tqdm", "`progress=True`")
    total = len(batches) if hasattr(batches, "__len__") else None  # type: ignore
    return tqdm.tqdm(total=total, desc="recalibrate", unit="batch")
