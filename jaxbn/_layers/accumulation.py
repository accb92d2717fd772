"""Several forward passes before one update of the running statistics.

The moments of the passes are merged exactly, by their counts. The running statistics
are updated once, by the merged moments.

A Linen model keeps the moments in the collection `batch_moments`. Where `mutable` names
it, layers merge the moments of every pass into it and leave the running statistics
unchanged. `end_accumulation` then makes one update:

  >>> import flax.linen as nn
  >>> from jaxbn.linen import BatchNorm
  >>> layer = BatchNorm(use_running_average=False, momentum=0.0)
  >>> x = jax.random.normal(jax.random.key(0), (8, 3))
  >>> variables = layer.init(jax.random.key(1), x)
  >>> for part in (x[:2], x[2:]):
  ...     _, collected = layer.apply(variables, part, mutable=["batch_moments"])
  ...     variables |= collected
  >>> stats = end_accumulation(variables["batch_stats"], variables["batch_moments"])
  >>> bool(jnp.allclose(stats["mean"], x.mean(0), atol=1e-6))
  True

Name "batch_stats" as well if other modules keep state there, such as a counter or
`nn.SpectralNorm`: every pass then updates their state, but not the statistics of the
layers. `jaxbn.accumulate` does the same for NNX models.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn import estimators
from jaxbn._core import moments as moments_lib
from jaxbn._core import reduction, user_warnings
from jaxbn.estimators import BatchStats

NAME = "batch_moments"


class Accumulated(NamedTuple):
    """The result of several passes of one layer."""

    moments: moments_lib.Moments  # The moments of all passes together, [C].
    batch_stats: BatchStats  # The statistics after one update by these moments.


def nothing_yet(batch_stats: BatchStats) -> Accumulated:
    """Returns the result before the first pass: moments of count 0."""
    return Accumulated(_no_moments(batch_stats.mean, batch_stats.var), batch_stats)


def add(
    estimator: estimators.Estimator,
    batch_stats: BatchStats,
    before: moments_lib.Moments | None,
    moments: moments_lib.Moments,
    path: str,
) -> Accumulated:
    """Returns the result after one more pass.

    Args:
      estimator: the estimator of the layer.
      batch_stats: the statistics before the first pass.
      before: the moments of the passes before, or None.
      moments: the moments of this pass, `[C]` or `[groups, C]`.
      path: the path of the layer in its model, for messages.

    Raises:
      ValueError: if the moments before have another shape than the statistics.
    """
    total = _no_moments(batch_stats.mean, batch_stats.var)
    if before is not None:
        check_shapes(path, before.mean, total.mean)
        # The first complex batch makes moments and statistics complex.
        total = jax.tree.map(
            lambda part, like: part.astype(jnp.promote_types(part.dtype, like.dtype)),
            before,
            total,
        )
    if moments.mean.ndim > batch_stats.mean.ndim:
        moments = moments_lib.merge_rows(moments)
    merged = moments_lib.merge_moments(total, moments)
    # Shapes, dtypes and shardings stay, so that `lax.scan` can carry the result.
    merged = jax.tree.map(
        lambda new, old: jnp.asarray(reduction.split_as(new, old), old.dtype),
        merged,
        total,
    )
    merged = jax.lax.stop_gradient(merged)
    return Accumulated(merged, estimators.updated(estimator, batch_stats, merged))


def _no_moments(mean: jax.Array, var: jax.Array) -> moments_lib.Moments:
    """Returns moments of count 0 for these channels, in float32 or wider."""
    mean, real = (
        jnp.zeros_like(part, reduction.reduction_dtype(part.dtype))
        for part in (mean, var)
    )
    return moments_lib.Moments(real, mean, real, mean)


def begin_accumulation(batch_stats: Any) -> Any:
    """Returns the collection `batch_moments` before the first pass.

    The first pass creates the collection itself, except where it runs layers in
    `nn.cond`, `nn.switch`, `nn.while_loop` or an `nn.scan` that carries it. These
    cannot create variables, so the collection must exist before. A `lax.scan` over
    passes needs it too.

    Args:
      batch_stats: the collection of a model, or that of one layer.

    Returns:
      Moments of count 0 for every layer, which `end_accumulation` ignores.

    Example:
      >>> given = {"bn": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}
      >>> begin_accumulation(given)["bn"]["moments"][0]  # The count.
      Array([0., 0.], dtype=float32)
      >>> end_accumulation(given, begin_accumulation(given))["bn"]["var"]
      Array([1., 1.], dtype=float32)
    """
    if not isinstance(batch_stats, Mapping):
        return {}
    inner = {name: begin_accumulation(part) for name, part in batch_stats.items()}
    result = {name: part for name, part in inner.items() if part}
    leaves = {
        name: reduction.widened(leaf)
        for name, leaf in batch_stats.items()
        if hasattr(leaf, "dtype")
    }
    if {"mean", "var"} <= set(leaves):
        none = _no_moments(leaves["mean"], leaves["var"])
        # Another module, or a subclass, may keep variables beside these or of the same
        # names. A layer therefore marks what it has written to "moved".
        written = {name: jnp.zeros(leaf.shape, bool) for name, leaf in leaves.items()}
        result |= {"moments": tuple(none), "moved": leaves, "written": written}
    return result


def before_the_first_pass(
    batch_stats: Any, shapes: Any, path: tuple[str, ...] = ()
) -> Any:
    """Returns the collection before the first pass, in the structure that a pass gives.

    Args:
      batch_stats: the collection of the model.
      shapes: shapes and dtypes of the collection after a pass.
      path: the path of `batch_stats` in the collection of the model, for messages.

    Raises:
      ValueError: if moments have another shape than the statistics.
    """
    if _is_of_a_layer(shapes):
        for name, leaf in shapes["moved"].items():
            check_shapes("/".join(path), leaf, batch_stats[name])
    result: dict[str, Any] = {}
    for name, part in shapes.items():
        if name in ("moments", "written"):
            result[name] = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), part)
        elif name == "moved":
            result[name] = {
                each: jnp.asarray(batch_stats[each], like.dtype)
                for each, like in part.items()
            }
        else:
            result[name] = before_the_first_pass(batch_stats[name], part, (*path, name))
    return result


def end_accumulation(batch_stats: Any, batch_moments: Any) -> Any:
    """Returns the running statistics after one update by the moments of all passes.

    Every layer is updated as in training, by its own momentum and `estimator`. Layers
    that collected nothing stay unchanged, and so do other modules.

    Args:
      batch_stats: the collection after the passes.
      batch_moments: the collection that the passes filled.

    Returns:
      `batch_stats`, same structure and shapes.

    Raises:
      ValueError: if the moments of a layer have another shape than its statistics.

    Example:
      >>> from jaxbn.linen import BatchNorm
      >>> layer, x = BatchNorm(use_running_average=False), jnp.arange(8.0)[:, None]
      >>> variables = layer.init(jax.random.key(0), x)
      >>> none = begin_accumulation(variables["batch_stats"])
      >>> given = {**variables, "batch_moments": none}
      >>> _, updates = layer.apply(given, x, mutable=["batch_moments"])
      >>> end_accumulation(variables["batch_stats"], **updates)["mean"]
      Array([0.035], dtype=float32)
    """
    return _moved(batch_stats, batch_moments, ())


def _moved(batch_stats: Any, batch_moments: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(batch_stats, Mapping):
        return batch_stats
    moved = {
        name: _moved(stats, batch_moments[name], (*path, name))
        if name in batch_moments
        else stats
        for name, stats in batch_stats.items()
    }
    if _is_of_a_layer(batch_moments):
        for name, new in batch_moments["moved"].items():
            check_shapes("/".join(path), new, batch_stats[name])
            written = batch_moments["written"][name]
            moved[name] = jnp.where(written, new, batch_stats[name])
    kind: Any = type(batch_stats)  # dict or FrozenDict
    return kind(moved)


def check_shapes(path: str, collected: Any, statistics: Any) -> None:
    """Checks that what a layer collected has the shape of its statistics.

    Args:
      path: the path of the layer, for the message.
      collected: the mean of the moments, or an updated statistic.
      statistics: the mean or the statistic of the layer.

    Raises:
      ValueError: if the shapes differ.
    """
    if np.shape(collected) != np.shape(statistics):
        raise ValueError(
            f"The moments of layer {path!r} must have the shape of its statistics, "
            f"{np.shape(statistics)}, got {np.shape(collected)}. {ADVICE}"
        )


def check_can_be_made(path: str) -> None:
    """Checks that the first pass of a layer can create its part of the collection.

    Args:
      path: the path of the layer, for the message.

    Raises:
      ValueError: inside of a transformation of Flax that cannot create variables.
    """
    if user_warnings.is_in_branch_of_flax():
        raise ValueError(
            f"The collection 'batch_moments' of layer {path!r} must exist before "
            "`nn.cond`, `nn.switch` and `nn.while_loop`, which cannot create it, got "
            "none; give `jaxbn.begin_accumulation(batch_stats)` with the variables."
        )


ADVICE = (
    "`nn.scan`, `nn.vmap` and `nn.while_loop` must treat 'batch_moments' as they treat "
    "'batch_stats'. Where layers are stacked, give both the same axis: "
    "`variable_axes={..., 'batch_stats': 0, 'batch_moments': 0}`. Where all steps "
    "share a layer, carry both: `variable_carry=['batch_stats', 'batch_moments']`."
)


def moments_of(batch_moments: Any) -> dict[tuple[str, ...], moments_lib.Moments]:
    """Returns the moments of every layer, by its path.

    Example:
      >>> moments_of({"bn": {"moments": (1, 2, 3, 4), "moved": {}, "written": {}}})
      {('bn',): Moments(count=1, mean=2, var=3, tail=4)}
    """
    found: dict[tuple[str, ...], moments_lib.Moments] = {}

    def visit(path: tuple[str, ...], tree: Any) -> None:
        if _is_of_a_layer(tree):
            found[path] = moments_lib.Moments(*tree["moments"])
        if isinstance(tree, Mapping):
            for name, part in tree.items():
                visit((*path, name), part)

    visit((), batch_moments)
    return found


def _is_of_a_layer(tree: Any) -> bool:
    return isinstance(tree, Mapping) and {"moments", "moved", "written"} <= set(tree)


def as_variables(accumulated: Accumulated) -> dict[str, Any]:
    """Returns the variables that a Linen layer writes into the collection."""
    stats = accumulated.batch_stats
    moved = {"mean": stats.mean, "var": stats.var, **stats.extra, **stats.variant}
    return {
        "moments": tuple(accumulated.moments),
        "moved": moved,
        "written": {name: jnp.ones(leaf.shape, bool) for name, leaf in moved.items()},
    }
