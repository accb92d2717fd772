"""Population statistics of a trained model, from data instead of a moving average.

The second half of the paper's Algorithm 2, known as precise Batch Normalization: the
weights stay, batches go through the model in training mode, and the running statistics
become those of these batches, however the moving average had followed them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn import moments_collection
from jaxbn.core import moments as moments_lib
from jaxbn.core import running
from jaxbn.nnx import BatchNorm

Path = tuple[str, ...]
Pooling = Literal["mean", "pooled"]


def recalibrate(
    model: nn.Module | nnx.Module,
    variables: Mapping[str, Any] | None,
    batches: Iterable[Any],
    call: Callable[[Any, Any], Any],
    *,
    pooling: Pooling = "mean",
    rngs: Any = None,
) -> Any:
    """The variables, or the NNX model, with running statistics of the given batches.

    All layers in one pass over the batches. Each batch counts by its number of valid
    elements, for each channel; arrays that are sharded under jit give statistics of the
    whole. A channel that is not finite in a batch leaves that batch out. Linen layers
    that normalise by running statistics, and all that are told not to move them
    (`update_running_average=False`), keep what they have, and so does what an estimator
    keeps beside mean and variance: training goes on with that weight.

    Give averaged weights (EMA, SWA) as `params` and theirs is what comes out. For a bar
    of progress give `tqdm.tqdm(batches)`.

    Args:
      model: a Linen model with layers of `jaxbn.linen.BatchNorm`, or an NNX model with
        those of `jaxbn.nnx.BatchNorm`; not changed.
      variables: all that `model.apply` takes, not changed; None for an NNX model.
      batches: of any kind; those of one shape are compiled once.
      call: called with the model, its variables bound, and a batch; runs the model in
        training mode, for instance
        `lambda model, batch: model(batch["x"], train=True)`. An NNX model is in that
        mode already.
      pooling: "mean": the mean over the batches of their unbiased variances, as in the
        paper; "pooled": the unbiased variance of all examples together, which also has
        the spread of the means of the batches.
      rngs: keys for the random streams of a Linen model, such as dropout; the same for
        every batch.

    Returns:
      `variables` with a new `batch_stats`, same structure, shapes and dtypes; or a copy
      of the NNX model.

    Raises:
      ValueError: if there is no batch, no layer took part, `pooling` is unknown, or
        `variables` are missing, or given with an NNX model; if a layer is not jaxbn's,
        or stands in an `nn.scan` or `nn.vmap` whose `variable_axes` lack
        `batch_moments`.

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
    if pooling not in _ADD:
        raise ValueError(f"`pooling` must be one of {tuple(_ADD)}, got {pooling!r}.")

    if (variables is None) != isinstance(model, nnx.Module):
        raise ValueError(
            "`variables` must be all that `model.apply` takes, and None for an NNX "
            "model."
        )
    given: Any = variables
    if isinstance(model, nnx.Module):
        graph, given = nnx.split(model)
        take = _of_nnx(graph, call)
    else:
        take = _of_linen(model, call, rngs)
    totals = _totals(take, _ADD[pooling], given, batches)
    totals = {path: each for path, each in totals.items() if jnp.any(each.count > 0)}
    if not totals:
        raise ValueError(
            "`call` must run `BatchNorm` layers of jaxbn in training mode, got none "
            "that moves its statistics."
        )
    unbiased = pooling == "pooled"
    if isinstance(model, nnx.Module):
        return _moved_model(model, totals, unbiased)
    stats = given["batch_stats"]
    for path, total in totals.items():
        stats = _replaced(stats, path, total, unbiased)
    return type(given)({**given, "batch_stats": stats})


def _totals(moments_of, add, variables, batches) -> dict[Path, moments_lib.Moments]:
    """The moments of all batches together, by layer."""

    @jax.jit
    def first(variables: Any, batch: Any) -> dict[Path, Any]:
        nothing = jax.tree.map(jnp.zeros_like, made := moments_of(variables, batch))
        return {path: add(nothing[path], _finite(made[path])) for path in made}

    @jax.jit
    def advance(totals, variables: Any, batch: Any) -> dict[Path, Any]:
        made = moments_of(variables, batch)
        return {path: add(totals[path], _finite(made[path])) for path in made}

    totals: dict[Path, moments_lib.Moments] | None = None
    for batch in batches:
        if totals is None:
            totals = first(variables, batch)
        else:
            totals = advance(totals, variables, batch)
    if totals is None:
        raise ValueError("`batches` must hold at least one batch, got none.")
    return totals


def _of_linen(model: nn.Module, call, rngs):
    """Variables and batch -> moments by layer, of a Linen model."""

    def moments_of(variables: Mapping[str, Any], batch: Any) -> dict[Path, Any]:
        name = moments_collection.NAME
        given = {each: tree for each, tree in variables.items() if each != name}
        # Whatever else the model writes is dropped.
        mutable = [name, *(each for each in given if each != "params")]
        _, written = model.apply(given, batch, method=call, mutable=mutable, rngs=rngs)
        collected = written.get(name, {})
        stats = given.get("batch_stats", {})
        after = written.get("batch_stats", {})
        moments_collection.check_all_collected(stats, after, collected)
        return moments_collection.moments_of(collected)

    return moments_of


def _of_nnx(graph: Any, call):
    """State and batch -> moments by layer, of an NNX model."""

    def moments_of(state: Any, batch: Any) -> dict[Path, Any]:
        model = nnx.merge(graph, state, copy=True)
        model.train()
        layers = _layers(model)
        for norm in layers.values():
            norm.collect()
        call(model, batch)
        collected = {path: norm.collected.get_value() for path, norm in layers.items()}
        return {path: each.moments for path, each in collected.items()}

    return moments_of


def _layers(model: nnx.Module) -> dict[Path, BatchNorm]:
    """Those of jaxbn that would move their statistics, by their path."""
    return {
        tuple(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, BatchNorm) and module.update_running_average is not False
    }


def _moved_model(model: nnx.Module, totals, unbiased: bool) -> nnx.Module:
    """A copy of the model with mean and variance of its layers replaced."""
    copy = nnx.clone(model)
    layers = _layers(copy)
    for path, total in totals.items():
        norm = layers[path]
        old = running.BatchStats(norm.mean[...], norm.var[...])
        norm.mean[...], norm.var[...] = _population(old, total, unbiased)
    return copy


def _finite(batch: moments_lib.Moments) -> moments_lib.Moments:
    """No elements of the channels whose moments are not finite."""
    usable = jnp.isfinite(batch.mean) & jnp.isfinite(batch.var)
    return jax.tree.map(lambda part: jnp.where(usable, part, 0), batch)


def _add_mean(
    total: moments_lib.Moments, batch: moments_lib.Moments
) -> moments_lib.Moments:
    """Averages weighted by count; the variance in them is the unbiased one."""
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


_ADD = {"mean": _add_mean, "pooled": moments_lib.merge_moments}


def _replaced(tree: Any, path: Path, total: moments_lib.Moments, unbiased: bool) -> Any:
    """The collection with mean and variance of one layer replaced."""
    if path:
        inner = _replaced(tree[path[0]], path[1:], total, unbiased)
        return type(tree)({**tree, path[0]: inner})
    old = running.BatchStats(tree["mean"], tree["var"])
    return type(tree)({**tree, **_population(old, total, unbiased)._asdict()})


def _population(
    old: running.BatchStats, total: moments_lib.Moments, unbiased: bool
) -> running.BatchStats:
    """What the batches say of each channel; the old where they say nothing."""
    new, count = running.of_batch(old, total, unbiased)
    usable = running.is_usable(new, count)
    return jax.tree.map(
        lambda new, old: jnp.where(usable, new, old).astype(old.dtype), new, old
    )
