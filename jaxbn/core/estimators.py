"""Estimators of the population's statistics: rules by which running statistics change.

An estimator is a static object with three functions: `init` returns the first state,
`update` moves the state by the moments of one batch, `estimate` reads mean and variance
from it. The states of the four estimators here begin with that mean and variance, so
that inference, checkpoints and Flax find `mean` and `var` where they expect them.

  >>> estimator = debiased(momentum=0.75)
  >>> ones = jnp.ones(1)
  >>> moments = moments_lib.Moments(count=2 * ones, mean=ones, var=ones)
  >>> state = estimator.update(estimator.init(1, jnp.float32), moments)
  >>> estimator.estimate(state)  # The first batch's own, with m / (m - 1).
  BatchStats(mean=Array([1.], dtype=float32), var=Array([2.], dtype=float32))

Each of them leaves a channel unchanged where a batch has fewer than two values for it
or moments that are not finite.

Mean and variance may be set from outside: by `jaxbn.recalibrate`, `sync_batch_stats` or
`replace`, or from a checkpoint of another estimator. Such values count as established:
the next batch moves them, and does not replace them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.core
import jax.numpy as jnp

from jaxbn.core import moments as moments_lib
from jaxbn.core import reduction, running

Shape = int | Sequence[int]

# Statistics that were set from outside weigh as much as this many batches. The next
# batch then weighs 1/100, as with the default momentum.
_ESTABLISHED = 99.0


@runtime_checkable
class Estimator(Protocol):
    """The interface of an estimator; equal objects are the same estimator.

    Write your own as a frozen dataclass, which compares, hashes and pickles by its
    settings. A layer can keep the state if it is a `NamedTuple` with the fields `mean`
    and `var`. A further field `weight`, `[C]` or `[C, k]`, holds the weight of the
    batches in the state; `jaxbn.sync_batch_stats` weights replicas by it.
    """

    def init(self, shape: Shape, dtype: jax.typing.DTypeLike) -> Any:
        """Returns the state before the first batch, for a shape of channels."""
        ...

    def update(self, state: Any, moments: moments_lib.Moments) -> Any:
        """Returns the state after a batch: same shapes and dtypes, no gradient."""
        ...

    def estimate(self, state: Any) -> running.BatchStats:
        """Returns the statistics that inference uses."""
        ...


class Weighted(NamedTuple):
    """The state of an average, with the weight of the batches in it."""

    mean: jax.Array
    var: jax.Array
    weight: jax.Array  # [C]; 0 before the first batch


class Window(NamedTuple):
    """The state of an average over the last k batches, the newest of them first.

    A batch moves the others up by one slot. All leaves are numbers that may be averaged
    with those of another model.
    """

    mean: jax.Array
    var: jax.Array
    weight: jax.Array  # [C, k]; the weight of every slot, 0 if it is empty
    means: jax.Array  # [C, k]
    variances: jax.Array  # [C, k]


def ema(momentum: jax.typing.ArrayLike = 0.99, unbiased: bool = True) -> Estimator:
    """Returns the exponential moving average from mean 0 and variance 1, as in Flax.

    Args:
      momentum: weight of the OLD value, in [0, 1].
      unbiased: move the variance towards `var * m / (m - 1)`, where `m` counts the
        batch.

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Section 3.1.
    """
    return _Ema(_as_setting(momentum), unbiased)


def debiased(momentum: jax.typing.ArrayLike = 0.99, unbiased: bool = True) -> Estimator:
    """Returns the exponential average of batches alone, correct from the first batch.

    The average is `sum_i w_i batch_i / sum_i w_i` with `w_i = momentum^(t - i)`. It
    contains nothing of the initial mean and variance.

    Args:
      momentum: weight of the OLD value, in [0, 1].
      unbiased: average `var * m / (m - 1)` instead of `var`.

    References:
      Kingma and Ba, arXiv:1412.6980, Section 3.
    """
    return _Debiased(_as_setting(momentum), unbiased)


def cumulative(unbiased: bool = True) -> Estimator:
    """Returns the average over all batches, each with the same weight.

    This is PyTorch's `momentum=None`. Statistics that were set from outside weigh as
    much as 99 batches.

    Args:
      unbiased: average `var * m / (m - 1)` instead of `var`.

    References:
      Wu and Johnson, arXiv:2105.07576, Section 3.
    """
    return _Cumulative(unbiased)


def window(batches: int = 100, unbiased: bool = True) -> Estimator:
    """Returns the average over the last batches, each with the same weight.

    Statistics that were set from outside take the place of all batches in the window.

    Args:
      batches: the number of batches. Their statistics are kept, in two arrays of shape
        `[C, batches]`.
      unbiased: average `var * m / (m - 1)` instead of `var`.

    Raises:
      ValueError: if `batches` is not at least 1.
    """
    if batches < 1:
        raise ValueError(f"`batches` must be at least 1, got {batches}.")
    return _Window(batches, unbiased)


NAMES = ("ema", "debiased", "cumulative", "window")
Name = Literal["ema", "debiased", "cumulative", "window"]


def named(name: Name, momentum: jax.typing.ArrayLike, unbiased: bool) -> Estimator:
    """Returns one of `NAMES`; only "ema" and "debiased" have a momentum."""
    if name == "ema":
        return ema(momentum, unbiased)
    if name == "debiased":
        return debiased(momentum, unbiased)
    return cumulative(unbiased) if name == "cumulative" else window(unbiased=unbiased)


def _as_setting(momentum: Any) -> Any:
    """Returns a known momentum as numbers, which compare and hash: one, or a tuple."""
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

    def init(self, shape: Shape, dtype: jax.typing.DTypeLike) -> running.BatchStats:
        return running.init_batch_stats(shape, dtype)

    def update(
        self, state: running.BatchStats, moments: moments_lib.Moments
    ) -> running.BatchStats:
        return running.update_batch_stats(
            state,
            moments,
            momentum=_as_operand(self.momentum),
            unbiased=self.unbiased,
        )

    def estimate(self, state: running.BatchStats) -> running.BatchStats:
        return state


class _WeightedAverage:
    """The functions that averages with a weight share."""

    def init(self, shape: Shape, dtype: jax.typing.DTypeLike) -> Weighted:
        mean, var = running.init_batch_stats(shape, dtype)
        # A weight of half precision would stop growing at 256.
        weight = jnp.zeros_like(var, reduction.reduction_dtype(var.dtype))
        return Weighted(mean, var, weight)

    def estimate(self, state: Weighted) -> running.BatchStats:
        return running.BatchStats(state.mean, state.var)


@dataclasses.dataclass(frozen=True)
class _Debiased(_WeightedAverage):
    momentum: Any
    unbiased: bool

    def update(self, state: Weighted, moments: moments_lib.Moments) -> Weighted:
        # An established state weighs 1, as infinitely many batches do.
        state = _with_established_weight(state, 1.0)
        decay = _as_operand(self.momentum)
        return _update_weighted(state, moments, decay, 1 - decay, self.unbiased)


@dataclasses.dataclass(frozen=True)
class _Cumulative(_WeightedAverage):
    unbiased: bool

    def update(self, state: Weighted, moments: moments_lib.Moments) -> Weighted:
        state = _with_established_weight(state, _ESTABLISHED)
        return _update_weighted(state, moments, 1.0, 1.0, self.unbiased)


@dataclasses.dataclass(frozen=True)
class _Window:
    batches: int
    unbiased: bool

    def init(self, shape: Shape, dtype: jax.typing.DTypeLike) -> Window:
        mean, var = running.init_batch_stats(shape, dtype)
        weight_dtype = reduction.reduction_dtype(var.dtype)

        def slots(dtype: jnp.dtype) -> jax.Array:
            return jnp.zeros((*mean.shape, self.batches), dtype)

        return Window(
            mean, var, slots(weight_dtype), slots(mean.dtype), slots(var.dtype)
        )

    def update(self, state: Window, moments: moments_lib.Moments) -> Window:
        old = self.estimate(state)
        batch, count = running.of_batch(old, moments, self.unbiased)
        usable = running.is_usable(batch, count)
        slots = _established_slots(state)

        def moved_up(slots: jax.Array, new: jax.Array) -> jax.Array:
            new = jnp.asarray(new, slots.dtype)[..., None]
            return jnp.concatenate([new, slots[..., :-1]], -1)

        pairs = zip(slots, (jnp.ones_like(old.var), *batch), strict=True)
        weight, means, variances = (moved_up(*pair) for pair in pairs)
        share = _shares(weight)
        half = _half_offset(share, means, old.mean)
        mean = (old.mean + half + half).astype(old.mean.dtype)
        var = jnp.sum(share * variances, -1).astype(old.var.dtype)
        new = Window(mean, var, weight, means, variances)

        def kept(new: jax.Array, old: jax.Array) -> jax.Array:
            by_slot = new.ndim > usable.ndim
            return jnp.where(usable[..., None] if by_slot else usable, new, old)

        return jax.lax.stop_gradient(jax.tree.map(kept, new, state))

    def estimate(self, state: Window) -> running.BatchStats:
        return running.BatchStats(state.mean, state.var)


def _update_weighted(
    state: Weighted,
    moments: moments_lib.Moments,
    decay: jax.typing.ArrayLike,
    gain: jax.typing.ArrayLike,
    unbiased: bool,
) -> Weighted:
    old = running.BatchStats(state.mean, state.var)
    batch, count = running.of_batch(old, moments, unbiased)
    usable = running.is_usable(batch, count)
    weight = jnp.asarray(decay * state.weight + gain, state.weight.dtype)
    # With a momentum of 1 the weight stays 0, and the state does not change.
    share = jnp.where(weight > 0, gain / jnp.where(weight > 0, weight, 1), 0)

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.asarray((1 - share) * old + share * new, old.dtype)

    mean, var = jax.tree.map(move, old, batch)
    new = Weighted(mean, var, weight)
    kept = jax.tree.map(lambda new, old: jnp.where(usable, new, old), new, state)
    return jax.lax.stop_gradient(kept)


def _is_initial(state: Weighted | Window) -> jax.Array:
    """Returns where mean and variance are the 0 and 1 of a new state."""
    return (state.mean == 0) & (state.var == 1)


def _with_established_weight(state: Weighted, weight: float) -> Weighted:
    """Returns the state with a weight for statistics that were set from outside.

    Such statistics have no weight, as before the first batch, but are not the initial
    ones.
    """
    was_set = (state.weight == 0) & ~_is_initial(state)
    return state._replace(weight=jnp.where(was_set, weight, state.weight))


def _established_slots(state: Window) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns weights, means and variances of the slots, with the average of the state.

    If mean and variance are not the average of the slots, they were set from outside
    and take the place of what the slots hold. The tolerance is the rounding of the mean
    and a thousandth of the spread, which does not matter.
    """
    weight, means, variances = state.weight, state.means, state.variances
    share = _shares(weight)
    half = _half_offset(share, means, state.mean)
    rounding = 4 * float(jnp.finfo(state.var.dtype).eps)
    spread = 1e-3 * jnp.sqrt(state.var) + rounding * jnp.abs(state.mean)
    same = jnp.abs(half) <= spread / 2
    var = jnp.sum(share * variances, -1)
    same &= jnp.abs(var - state.var) <= max(1e-3, rounding) * state.var
    empty = jnp.sum(weight, -1) == 0
    was_set = jnp.where(empty, ~_is_initial(state), ~same)
    weight = jnp.where((was_set & empty)[..., None], 1, weight)
    was_set = was_set[..., None]
    means = jnp.where(was_set, state.mean[..., None], means)
    return weight, means, jnp.where(was_set, state.var[..., None], variances)


def _shares(weight: jax.Array) -> jax.Array:
    """Returns the weights of the slots, `[C, k]`, divided by their sum."""
    total = jnp.sum(weight, -1, keepdims=True)
    return weight / jnp.where(total > 0, total, 1)


def _half_offset(share: jax.Array, means: jax.Array, mean: jax.Array) -> jax.Array:
    """Returns half of the weighted average of `means - mean` over the slots, `[C]`.

    Differences of neighbouring numbers are exact, where an average of large numbers is
    rounded. Half of a difference of two finite numbers is finite.
    """
    return jnp.sum(share * (means / 2 - mean[..., None] / 2), -1)
