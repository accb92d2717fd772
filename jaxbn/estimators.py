"""Estimators: the rules that update running statistics.

An estimator is a static object with two methods: `init` returns the first `BatchStats`,
and `update` updates it by the moments of one batch. The exponential moving average of
Flax is

    mean <- momentum * mean + (1 - momentum) * batch_mean
    var  <- momentum * var  + (1 - momentum) * batch_var * m / (m - 1)

  >>> estimator = debiased(momentum=0.75)
  >>> ones = jnp.ones(1)
  >>> moments = moments_lib.Moments(count=2 * ones, mean=ones, var=ones)
  >>> stats = estimator.update(estimator.init(1, jnp.float32), moments)
  >>> stats.mean, stats.var  # Those of the first batch, with m / (m - 1).
  (Array([1.], dtype=float32), Array([2.], dtype=float32))

Every estimator here leaves a channel unchanged where a batch has fewer than two values
for it or moments that are not finite.

Mean and variance may be set from outside: by `jaxbn.recalibrate`, `sync_batch_stats` or
`replace`, or from a checkpoint of another estimator. Such values count as established:
the next batch is averaged with them, and does not replace them.
"""

import dataclasses
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import jax
import jax.core
import jax.numpy as jnp

from jaxbn._core import arguments, reduction, running
from jaxbn._core import moments as moments_lib
from jaxbn._core.running import BatchStats, Shape

__all__ = [
    "BatchStats",
    "Estimator",
    "cumulative",
    "debiased",
    "ema",
    "init_batch_stats",
    "window",
]

Name = Literal["ema", "debiased", "cumulative", "window"]
EstimatorOrName = Name | Any
"""The type of the option `estimator`: a name, or an `Estimator` with its settings."""

MOMENTUM = 0.99
"""The default of the option `momentum`."""

# Statistics that were set from outside weigh as much as this many batches. The next
# batch then weighs 1/100, as with the default momentum.
_ESTABLISHED = 99.0


@runtime_checkable
class Estimator(Protocol):
    """The interface of an estimator; equal objects are the same estimator.

    Write your own as a frozen dataclass, which compares, hashes and pickles by its
    settings. It may keep arrays in `BatchStats.extra`. An array `weight` there, `[C]`
    or `[C, k]`, is the weight of the batches in the statistics;
    `jaxbn.sync_batch_stats` weights replicas by it.

    Example:
      >>> import dataclasses
      >>> @dataclasses.dataclass(frozen=True)
      ... class LastBatch:
      ...     def init(self, shape, dtype):
      ...         return BatchStats(jnp.zeros(shape, dtype), jnp.ones(shape, dtype))
      ...     def update(self, batch_stats, moments):
      ...         return batch_stats._replace(mean=moments.mean, var=moments.var)
      >>> init_batch_stats(2, estimator=LastBatch()).mean
      Array([0., 0.], dtype=float32)
    """

    def init(self, shape: Shape, dtype: jax.typing.DTypeLike) -> BatchStats:
        """Returns the statistics before the first batch, for a shape of channels."""
        ...

    def update(
        self, batch_stats: BatchStats, moments: moments_lib.Moments
    ) -> BatchStats:
        """Returns the statistics after a batch: same shapes and dtypes, no gradient."""
        ...


def init_batch_stats(
    shape: Shape,
    dtype: jax.typing.DTypeLike = jnp.float32,
    *,
    estimator: EstimatorOrName = "ema",
    sync: Any = None,
    variant: Any = None,
) -> BatchStats:
    """Returns running statistics before the first batch: mean 0, variance 1, as Flax.

    Args:
      shape: the shape of the channels: `C`, `(C,)`, or one size per channel axis.
      dtype: the dtype of the mean; the variance has the real dtype that belongs to it.
      estimator: the estimator of the training calls.
      sync: the policy of synchronisation of the training calls, or None.
      variant: the variant of the training calls, or None.

    Raises:
      ValueError, TypeError: if `estimator` is no estimator, `sync` no policy or
        `variant` no variant.

    Example:
      >>> init_batch_stats(2).var
      Array([1., 1.], dtype=float32)
      >>> init_batch_stats(2, estimator="debiased").extra
      {'weight': Array([0., 0.], dtype=float32)}
    """
    stats = as_estimator(estimator).init(shape, dtype)
    return with_first_state(stats, sync, variant, dtype)


def with_first_state(
    batch_stats: BatchStats, sync: Any, variant: Any, dtype: jax.typing.DTypeLike
) -> BatchStats:
    """Returns the statistics with the first state of a policy or of a variant.

    Args:
      batch_stats: the statistics without a state.
      sync: a policy, or None.
      variant: a variant, or None.
      dtype: the dtype of the moments.
    """
    arguments.check_sync_and_variant(sync, variant)
    shape, dtype = batch_stats.mean.shape, jnp.dtype(dtype)
    if sync is not None:
        return batch_stats._replace(sync=sync.init(shape, dtype))
    if variant is None:
        return batch_stats
    state = variant.init(shape, dtype)
    messages = {name: state.pop(name) for name in running.MESSAGES if name in state}
    return batch_stats._replace(sync=messages, variant=state)


def ema(
    momentum: jax.typing.ArrayLike = MOMENTUM,
    unbiased: bool = True,
    per_group: bool = False,
) -> Estimator:
    """Returns the exponential moving average from mean 0 and variance 1, as in Flax.

    Args:
      momentum: weight of the OLD value, in [0, 1].
      unbiased: update the variance with `var * m / (m - 1)`; `m` counts the batch.
      per_group: if parts of `group_size` examples are normalised apart, make one step
        for each part, one after the other, instead of one for the whole batch (Hoffer
        et al., arXiv:1705.08741). The same holds for groups of several devices.

    Example:
      >>> ones = jnp.ones(1)
      >>> moments = moments_lib.Moments(count=2 * ones, mean=ones, var=ones)
      >>> stats = ema(0.75).update(init_batch_stats(1), moments)
      >>> stats.mean, stats.var
      (Array([0.25], dtype=float32), Array([1.25], dtype=float32))

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Section 3.1 and Algorithm 2.
    """
    return _Ema(_as_setting(momentum), unbiased, per_group)


def debiased(
    momentum: jax.typing.ArrayLike = MOMENTUM, unbiased: bool = True
) -> Estimator:
    """Returns the exponential moving average without the initial mean and variance.

    The average is `sum_i w_i batch_i / sum_i w_i` with `w_i = momentum^(t - i)`, so it
    is correct from the first batch. `extra["weight"]` is the sum of the weights.

    Args:
      momentum: weight of the OLD value, in [0, 1].
      unbiased: average `var * m / (m - 1)` instead of `var`.

    Example:
      >>> sorted(debiased().init(3, jnp.float32).extra)
      ['weight']

    References:
      Kingma and Ba, arXiv:1412.6980, Section 3.
    """
    return _Debiased(_as_setting(momentum), unbiased)


def cumulative(unbiased: bool = True) -> Estimator:
    """Returns the average over all batches, each with the same weight.

    This is PyTorch's `momentum=None`. Statistics that were set from outside weigh as
    much as 99 batches. `extra["weight"]` is the number of batches.

    Args:
      unbiased: average `var * m / (m - 1)` instead of `var`.

    Example:
      >>> cumulative().init(1, jnp.float32).extra["weight"]
      Array([0.], dtype=float32)

    References:
      Wu and Johnson, arXiv:2105.07576, Section 3.
    """
    return _Cumulative(unbiased)


def window(batches: int = 100, unbiased: bool = True) -> Estimator:
    """Returns the average over the last batches, each with the same weight.

    Statistics that were set from outside replace all batches in the window. `extra`
    holds the `means` and `variances` of the last batches, the newest first,
    `[C, batches]` each. `weight`, of the same shape, is 0 where a slot is empty.

    Args:
      batches: the number of batches.
      unbiased: average `var * m / (m - 1)` instead of `var`.

    Raises:
      ValueError: if `batches` is not at least 1.

    Example:
      >>> window(4).init(3, jnp.float32).extra["means"].shape
      (3, 4)
    """
    if batches < 1:
        raise ValueError(f"`batches` must be at least 1, got {batches}.")
    return _Window(batches, unbiased)


def as_estimator(
    value: EstimatorOrName,
    momentum: jax.typing.ArrayLike = MOMENTUM,
    unbiased: bool = True,
) -> Estimator:
    """Returns the estimator that the options of a layer or a function request.

    Args:
      value: the name of an estimator, or an estimator.
      momentum: the momentum of a named estimator that has one.
      unbiased: the setting of a named estimator.

    Raises:
      ValueError: if the name is unknown; if momentum is outside [0, 1]; if momentum or
        `unbiased` is given beside an estimator that ignores it.
      TypeError: if the value is neither a name nor an estimator.
    """
    names = get_args(Name)
    for name in ignored_options(value):
        given, default = (
            (momentum, MOMENTUM) if name == "momentum" else (unbiased, True)
        )
        if not isinstance(given, (bool, int, float)) or given != default:
            raise ValueError(
                f"`{name}` has no effect beside `estimator={value!r}`, got {given!r}; "
                "leave it out, or give it to an estimator of `jaxbn.estimators`."
            )
    if not isinstance(value, str) and _is_estimator(value):
        return value
    if not isinstance(value, str) or value not in names:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(
            f"`estimator` must be one of {names} or an `Estimator`, got {value!r}."
        )
    if value in ("ema", "debiased"):
        arguments.check_momentum(momentum)
        return (ema if value == "ema" else debiased)(momentum, unbiased)
    return cumulative(unbiased) if value == "cumulative" else window(unbiased=unbiased)


def ignored_options(estimator: EstimatorOrName) -> tuple[str, ...]:
    """Returns the options of a layer that have no effect with this estimator."""
    if isinstance(estimator, str):
        return ("momentum",) if estimator in ("cumulative", "window") else ()
    return ("momentum", "unbiased") if _is_estimator(estimator) else ()


def _is_estimator(value: Any) -> bool:
    return isinstance(value, Estimator) and not isinstance(value, type)


def check_batch_stats(estimator: Estimator, batch_stats: Any) -> None:
    """Checks that running statistics are those of an estimator.

    Raises:
      TypeError: if they are no `BatchStats`, or those of another estimator.
    """
    if not isinstance(batch_stats, BatchStats):
        raise TypeError(
            f"`batch_stats` must be a `BatchStats`, got {type(batch_stats).__name__}; "
            "make one with `init_batch_stats`."
        )
    if not isinstance(estimator, _Ema):
        expected = jax.eval_shape(lambda: estimator.init(1, jnp.float32)).extra
        if jax.tree.structure(batch_stats.extra) != jax.tree.structure(expected):
            raise TypeError(
                f"`batch_stats.extra` must hold {sorted(expected)} for {estimator}, "
                f"got {sorted(batch_stats.extra)}; make it with "
                "`init_batch_stats(shape, estimator=...)`."
            )


def updated(
    estimator: Estimator, batch_stats: BatchStats, moments: moments_lib.Moments
) -> BatchStats:
    """Returns the running statistics after one batch.

    Args:
      estimator: the estimator.
      batch_stats: the statistics before the batch.
      moments: the moments of the batch, `[C]`, or of each of its groups, `[groups, C]`.
          Groups are merged: the statistics are those of all groups together. An
        estimator with a true attribute `per_group` is updated by one after the other.
    """
    with jax.named_scope("jaxbn.running"):
        if moments.mean.ndim > batch_stats.mean.ndim:
            if getattr(estimator, "per_group", False):

                def step(old, group):
                    return estimator.update(old, group), None

                moments = jax.tree.map(reduction.with_whole_rows, moments)
                start = jax.tree.map(
                    lambda leaf: reduction.varying_as(leaf, moments.mean), batch_stats
                )
                return jax.lax.scan(step, start, moments)[0]
            moments = moments_lib.merge_rows(moments)
        return estimator.update(batch_stats, moments)


def _as_setting(momentum: Any) -> Any:
    """Returns a known momentum as a number or a tuple, which compare and hash."""
    if isinstance(momentum, jax.core.Tracer):
        return momentum
    if getattr(momentum, "ndim", 0) == 0:
        return float(momentum)
    return tuple(map(_as_setting, momentum))


def _as_operand(momentum: Any) -> Any:
    """Returns a momentum for arithmetic: a tuple becomes an array."""
    return jnp.asarray(momentum) if isinstance(momentum, tuple) else momentum


@dataclasses.dataclass(frozen=True)
class _Ema:
    momentum: Any
    unbiased: bool
    per_group: bool = False

    def init(self, shape: Shape, dtype: jax.typing.DTypeLike) -> BatchStats:
        return running.new_batch_stats(shape, dtype)

    def update(
        self, batch_stats: BatchStats, moments: moments_lib.Moments
    ) -> BatchStats:
        mean, var, count = running.of_batch(batch_stats, moments, self.unbiased)
        # The new statistics lie between two finite numbers, so they are finite too. If
        # their own finiteness were checked, each would depend on both old ones, and XLA
        # could not update them in place.
        usable = running.is_usable(mean, var, count)
        momentum = _as_operand(self.momentum)

        def move(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.asarray(momentum * old + (1 - momentum) * new, old.dtype)

        new = batch_stats._replace(
            mean=move(batch_stats.mean, mean), var=move(batch_stats.var, var)
        )
        return running.where_usable(usable, new, batch_stats)


class _WeightedAverage:
    """An average that keeps the weight of its batches in `extra`."""

    def init(self, shape: Shape, dtype: jax.typing.DTypeLike) -> BatchStats:
        stats = running.new_batch_stats(shape, dtype)
        # A weight of half precision would stop growing at 256.
        weight = jnp.zeros_like(stats.var, reduction.reduction_dtype(stats.var.dtype))
        return stats._replace(extra={"weight": weight})


@dataclasses.dataclass(frozen=True)
class _Debiased(_WeightedAverage):
    momentum: Any
    unbiased: bool

    def update(
        self, batch_stats: BatchStats, moments: moments_lib.Moments
    ) -> BatchStats:
        # Established statistics weigh 1, as infinitely many batches do.
        weight = _established_weight(batch_stats, 1.0)
        decay = _as_operand(self.momentum)
        return _average(batch_stats, moments, decay * weight, 1 - decay, self.unbiased)


@dataclasses.dataclass(frozen=True)
class _Cumulative(_WeightedAverage):
    unbiased: bool

    def update(
        self, batch_stats: BatchStats, moments: moments_lib.Moments
    ) -> BatchStats:
        weight = _established_weight(batch_stats, _ESTABLISHED)
        return _average(batch_stats, moments, weight, 1.0, self.unbiased)


@dataclasses.dataclass(frozen=True)
class _Window:
    batches: int
    unbiased: bool

    def init(self, shape: Shape, dtype: jax.typing.DTypeLike) -> BatchStats:
        stats = running.new_batch_stats(shape, dtype)

        def slots(dtype: jnp.dtype) -> jax.Array:
            return jnp.zeros((*stats.mean.shape, self.batches), dtype)

        extra = {
            "weight": slots(reduction.reduction_dtype(stats.var.dtype)),
            "means": slots(stats.mean.dtype),
            "variances": slots(stats.var.dtype),
        }
        return stats._replace(extra=extra)

    def update(
        self, batch_stats: BatchStats, moments: moments_lib.Moments
    ) -> BatchStats:
        batch_mean, batch_var, count = running.of_batch(
            batch_stats, moments, self.unbiased
        )
        usable = running.is_usable(batch_mean, batch_var, count)

        def moved_up(slots: jax.Array, new: jax.Array) -> jax.Array:
            new = jnp.asarray(new, slots.dtype)[..., None]
            return jnp.concatenate([new, slots[..., :-1]], -1)

        extra = _established_slots(batch_stats)
        extra = {
            "weight": moved_up(extra["weight"], jnp.ones_like(batch_stats.var)),
            "means": moved_up(extra["means"], batch_mean),
            "variances": moved_up(extra["variances"], batch_var),
        }
        share = _shares(extra["weight"])
        half = _half_offset(share, extra["means"], batch_stats.mean)
        mean = batch_stats.mean + half + half
        var = jnp.sum(share * extra["variances"], -1)
        new = batch_stats._replace(
            mean=mean.astype(batch_stats.mean.dtype),
            var=var.astype(batch_stats.var.dtype),
            extra=extra,
        )
        return running.where_usable(usable, new, batch_stats)


def _average(
    old: BatchStats,
    moments: moments_lib.Moments,
    old_weight: jax.Array,
    batch_weight: jax.typing.ArrayLike,
    unbiased: bool,
) -> BatchStats:
    """Returns the average of the statistics and the batch, by their weights."""
    batch_mean, batch_var, count = running.of_batch(old, moments, unbiased)
    usable = running.is_usable(batch_mean, batch_var, count)
    weight = jnp.asarray(old_weight + batch_weight, old.extra["weight"].dtype)
    # With a momentum of 1 the weight stays 0, and the statistics do not change.
    divisor = jnp.where(weight > 0, weight, 1)
    share = jnp.where(weight > 0, batch_weight / divisor, 0)

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.asarray((1 - share) * old + share * new, old.dtype)

    new = old._replace(
        mean=move(old.mean, batch_mean),
        var=move(old.var, batch_var),
        extra={"weight": weight},
    )
    return running.where_usable(usable, new, old)


def _is_initial(batch_stats: BatchStats) -> jax.Array:
    """Returns where mean and variance are those before the first batch, 0 and 1."""
    return (batch_stats.mean == 0) & (batch_stats.var == 1)


def _established_weight(batch_stats: BatchStats, weight: float) -> jax.Array:
    """Returns the weight of the statistics; `weight` if they were set from outside.

    Statistics were set from outside if they have weight 0 but are not the initial ones.
    """
    known = batch_stats.extra["weight"]
    was_set = (known == 0) & ~_is_initial(batch_stats)
    return jnp.where(was_set, weight, known)


def _established_slots(batch_stats: BatchStats) -> dict[str, jax.Array]:
    """Returns weights, means and variances of the slots, whose average is the estimate.

    If mean and variance are not the average of the slots, they were set from outside
    and replace the content of the slots. The tolerance is the rounding of the mean and
    a thousandth of the spread.
    """
    mean, var, extra = batch_stats.mean, batch_stats.var, batch_stats.extra
    weight, means, variances = extra["weight"], extra["means"], extra["variances"]
    share = _shares(weight)
    half = _half_offset(share, means, mean)
    rounding = 4 * float(jnp.finfo(var.dtype).eps)
    spread = 1e-3 * jnp.sqrt(var) + rounding * jnp.abs(mean)
    same = jnp.abs(half) <= spread / 2
    average = jnp.sum(share * variances, -1)
    same &= jnp.abs(average - var) <= max(1e-3, rounding) * var
    empty = jnp.sum(weight, -1) == 0
    was_set = jnp.where(empty, ~_is_initial(batch_stats), ~same)
    return {
        "weight": jnp.where((was_set & empty)[..., None], 1, weight),
        "means": jnp.where(was_set[..., None], mean[..., None], means),
        "variances": jnp.where(was_set[..., None], var[..., None], variances),
    }


def _shares(weight: jax.Array) -> jax.Array:
    """Returns the weights of the slots, `[C, k]`, divided by their sum."""
    total = jnp.sum(weight, -1, keepdims=True)
    return weight / jnp.where(total > 0, total, 1)


def _half_offset(share: jax.Array, means: jax.Array, mean: jax.Array) -> jax.Array:
    """Returns half of the weighted average of `means - mean` over the slots, `[C]`.

    Differences of neighbouring numbers are exact, but an average of large numbers is
    rounded. Half of a difference of two finite numbers is finite.
    """
    return jnp.sum(share * (means / 2 - mean[..., None] / 2), -1)
