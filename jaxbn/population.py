"""Population statistics of a trained model, from data instead of a moving average.

The second half of the paper's Algorithm 2, known as precise Batch Normalization: the
weights stay, batches go through the model in training mode, and the running statistics
become those of these batches, however the moving average had followed them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbn import moments_collection
from jaxbn.core import moments as moments_lib
from jaxbn.core import running

Path = tuple[str, ...]
Pooling = Literal["mean", "pooled"]


def recalibrate(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    call: Callable[[Any, Any], Any],
    *,
    pooling: Pooling = "mean",
    rngs: Any = None,
) -> dict[str, Any]:
    """The variables with running statistics of the given batches.

    All layers in one pass over the batches. Each batch counts by its number of valid
    elements, for each channel; arrays that are sharded under jit give statistics of the
    whole. Layers that normalise by running statistics, or are told not to move them,
    keep what they have, and so does what an estimator keeps beside mean and variance.

    Give averaged weights (EMA, SWA) as `params` and theirs is what comes out. For a bar
    of progress give `tqdm.tqdm(batches)`.

    Args:
      model: a Linen model with layers of `jaxbn.linen.BatchNorm`.
      variables: all that `model.apply` takes; not changed.
      batches: of any kind; those of one shape are compiled once.
      call: called with the model, its variables bound, and a batch; runs the model in
        training mode, for instance
        `lambda model, batch: model(batch["x"], train=True)`.
      pooling: "mean": the mean over the batches of their unbiased variances, as in the
        paper; "pooled": the unbiased variance of all examples together, which also has
        the spread of the means of the batches.
      rngs: keys for the random streams of the model, such as dropout; the same for
        every batch.

    Returns:
      `variables` with a new `batch_stats`, same structure, shapes and dtypes.

    Raises:
      ValueError: if there is no batch, no layer took part, or `pooling` is unknown.

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

    def moments_of(variables: Mapping[str, Any], batch: Any) -> dict[Path, Any]:
        # Whatever else the model writes is dropped.
        _, written = model.apply(
            {name: tree for name, tree in variables.items() if name != _COLLECTION},
            batch,
            method=call,
            mutable=flax.core.DenyList("params"),
            rngs=rngs,
        )
        return moments_collection.moments_of(written.get(_COLLECTION, {}))

    add = _ADD[pooling]

    @jax.jit
    def first(variables: Mapping[str, Any], batch: Any) -> dict[Path, Any]:
        nothing = jax.tree.map(jnp.zeros_like, made := moments_of(variables, batch))
        return {path: add(nothing[path], made[path]) for path in made}

    @jax.jit
    def advance(totals, variables: Mapping[str, Any], batch: Any) -> dict[Path, Any]:
        made = moments_of(variables, batch)
        return {path: add(totals[path], made[path]) for path in made}

    totals: dict[Path, moments_lib.Moments] | None = None
    for batch in batches:
        if totals is None:
            totals = first(variables, batch)
        else:
            totals = advance(totals, variables, batch)
    if totals is None:
        raise ValueError("`batches` must hold at least one batch, got none.")
    if not totals:
        raise ValueError(
            "`call` must run `jaxbn.linen.BatchNorm` layers in training mode, got none "
            "that moves its statistics."
        )
    stats = variables["batch_stats"]
    for path, total in totals.items():
        stats = _replaced(stats, path, total, unbiased=pooling == "pooled")
    return {**variables, "batch_stats": stats}


_COLLECTION = moments_collection.NAME


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
    new, usable = running.of_batch(old, total, unbiased)
    kept = jax.tree.map(
        lambda new, old: jnp.where(usable, new, old).astype(old.dtype), new, old
    )
    return type(tree)({**tree, **kept._asdict()})
