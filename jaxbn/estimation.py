"""The estimator of population statistics that a user requests, and its state."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbn import call_site, checks, stats_tree
from jaxbn.core import estimators, reduction, running
from jaxbn.core import moments as moments_lib
from jaxbn.core.estimators import Estimator

EstimatorOrName = estimators.Name | Estimator
"""The type of the option `estimator`: a name, or an estimator with its settings."""


def as_estimator(
    name: str,
    value: EstimatorOrName | None,
    momentum: jax.typing.ArrayLike,
    unbiased: bool,
) -> Estimator:
    """Returns the estimator that an option requests.

    Args:
      name: the name of the option, for messages.
      value: one of `estimators.NAMES`, or an estimator. None means "ema".
      momentum: the momentum of a named estimator that has one.
      unbiased: the setting of a named estimator.

    Raises:
      ValueError: if the name is unknown, or if momentum is outside [0, 1].
      TypeError: if the value is neither a name nor an estimator.
    """
    value = "ema" if value is None else value
    if isinstance(value, Estimator) and not isinstance(value, type):
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"`{name}` must be one of {estimators.NAMES} or an `Estimator`, got "
            f"{value!r}."
        )
    if value not in estimators.NAMES:
        raise ValueError(
            f"`{name}` must be one of {estimators.NAMES} or an `Estimator`, got "
            f"{value!r}."
        )
    checks.check_momentum(momentum)
    return estimators.named(value, momentum, unbiased)


def moved(estimator: Estimator, state: Any, moments: moments_lib.Moments) -> Any:
    """Returns the state of an estimator after one batch.

    Args:
      estimator: the estimator that updates the state.
      state: the state before the batch.
      moments: the moments of the batch, `[C]`, or of each of its groups, `[groups, C]`.
        Groups are merged: the statistics are those of all groups together.
    """
    with jax.named_scope("jaxbn.running"):
        if moments.mean.ndim > estimator.estimate(state).mean.ndim:
            moments = moments_lib.merge_rows(moments)
        return estimator.update(state, moments)


def widened(state: Any, *, carried: bool = True) -> Any:
    """Returns a state in which every number has float32 or a wider dtype.

    A moving average stalls in half precision, where an old value plus a small step
    rounds to the old value. The state stays wide from then on.

    Args:
      state: any tree of arrays.
      carried: the state leaves the transformation that traces this call.

    Raises:
      TypeError: if the state has half precision and is carried by `lax.scan` or another
        loop or branch, which cannot return it in another dtype.

    Warns:
      UserWarning: if the state has half precision.
    """
    wide = in_wide_dtypes(state)
    pairs = zip(*map(jax.tree.leaves, (state, wide)), strict=True)
    dtypes = {
        jnp.result_type(old) for old, new in pairs if jnp.result_type(old) != new.dtype
    }
    if not dtypes:
        return state
    narrow = ", ".join(sorted(map(str, dtypes)))
    cause = f"The running statistics came in {narrow}, in which a moving average stalls"
    remedy = (
        "leave the collection `batch_stats` out where variables are cast, or cast it "
        "back: `jax.tree.map(lambda leaf: leaf.astype(jnp.float32), batch_stats)`"
    )
    if carried and (call_site.is_in_loop() or call_site.is_in_branch_of_flax()):
        raise TypeError(
            f"{cause}, and a loop or branch such as `lax.scan` cannot carry them out "
            f"in float32. Before it, {remedy}."
        )
    call_site.warn(f"{cause}; they go on in float32. To keep their digits, {remedy}.")
    return wide


def in_wide_dtypes(state: Any) -> Any:
    """Returns a state in which every number has float32 or a wider dtype, silently."""
    return jax.tree.map(lambda leaf: reduction.widened(jnp.asarray(leaf)), state)


def check_state(estimator: Estimator, state: Any) -> None:
    """Checks that a state belongs to this estimator.

    Raises:
      TypeError: if it has another type or structure.
    """
    expected = jax.eval_shape(lambda: estimator.init(1, jnp.float32))
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise TypeError(
            f"`batch_stats` must be a `{type(expected).__name__}`, the state of the "
            f"estimator, got {type(state).__name__}; make one with `estimator.init`."
        )


def as_batch_stats(state: Any) -> Any:
    """Returns mean and variance of a state that has them; any other state as it is."""
    fields = getattr(state, "_fields", ())
    if not {"mean", "var"} <= set(fields):
        return state
    return running.BatchStats(state.mean, state.var)


def state_type(estimator: Estimator) -> type[Any]:
    """Returns the type of the state of an estimator that a layer can keep.

    Raises:
      TypeError: if it is not a `NamedTuple` with the fields `mean` and `var`.
    """
    state = jax.eval_shape(lambda: estimator.init(1, jnp.float32))
    if not {"mean", "var"} <= set(getattr(state, "_fields", ())):
        raise TypeError(
            "`estimator` of a layer must be an estimator whose state is a "
            "`NamedTuple` with the fields `mean` and `var`, got "
            f"{type(state).__name__}."
        )
    return type(state)


def as_complex(estimator: Estimator, state: Any) -> Any:
    """Returns the state for complex inputs: complex where `init` makes it complex.

    A layer is created before it sees its first input, so its state may still be real. A
    checkpoint may hold such a state too.

    Example:
      >>> ema = estimators.ema(momentum=0.9)
      >>> state = as_complex(ema, ema.init(1, jnp.float32))
      >>> state.mean.dtype.name, state.var.dtype.name
      ('complex64', 'float32')
    """
    like = jax.eval_shape(lambda: estimator.init(1, jnp.complex64))

    def widen(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        return leaf + 0j if jnp.iscomplexobj(like) else leaf

    return jax.tree.map(widen, state, like)


def reset_batch_stats(tree: Any) -> Any:
    """Returns the running statistics of all layers as they are before the first batch.

    Means become 0 and variances 1. Everything else in the state of an estimator becomes
    0.

    Args:
      tree: `BatchStats`, the state of an estimator, or a tree of variables in which
        every layer has the names `mean` and `var` side by side, such as the state of an
        NNX model. Other leaves stay as they are, including `scale` and `bias` of a
        layer.

    Returns:
      A tree of the same structure, shapes, dtypes and shardings.

    Example:
      >>> reset_batch_stats({"bn": {"mean": jnp.ones(1), "var": jnp.ones(1) * 3}})
      {'bn': {'mean': Array([0.], dtype=float32), 'var': Array([1.], dtype=float32)}}
    """

    def reset(state: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            name: jnp.ones_like(leaf) if name == "var" else jnp.zeros_like(leaf)
            for name, leaf in state.items()
        }

    return stats_tree.map_states(reset, tree)
