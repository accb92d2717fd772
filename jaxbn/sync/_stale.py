"""Synchronisation by messages of earlier steps: no layer waits for another worker.

It does what exact synchronisation does, but with messages that the other workers sent
in earlier steps. In the forward pass a worker merges its own moments with its memory of
the other workers' moments. In the backward pass it adds the sums that it remembers of
the other workers to its own. No message has to arrive within the step, so that one
collective after the step serves all layers (see `_exchange`).

A worker sends its sums and receives the sums over all workers. It remembers both, and
the difference is its memory of the others. The sums are about a centre that all workers
know, so that a large mean causes no cancellation. It is the mean of the earlier steps.
Arrays that differ between workers are `[workers, C]`, on a device `[1, C]`. Arrays that
are the same for all workers are `[1, C]`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbn._core import moments as moments_lib
from jaxbn._core.call import Call, Normalized
from jaxbn._core.moments import Moments, merge_moments
from jaxbn.sync._policy import State


class Sums(NamedTuple):
    """The sums over the examples of one step, of one worker or of all."""

    count: jax.Array
    offset: jax.Array  # The sum of x - center.
    square: jax.Array  # The sum of |x - center|^2.
    gradient: jax.Array  # The sum of g, the cotangent of x_hat.
    product: jax.Array  # The sum of x_hat * g.


class Memory(NamedTuple):
    """The averages over the earlier steps, in which recent steps have more weight."""

    count: jax.Array  # The weighted sum of the counts, not their average.
    mean: jax.Array
    var: jax.Array
    gradient: jax.Array  # The average per step.
    product: jax.Array


@dataclasses.dataclass(frozen=True)
class Stale:
    """Each worker merges its own moments with the others' moments of earlier steps.

    In the first step a worker normalises by its own examples alone and passes no
    gradient to its inputs. The variance of a few examples may be almost zero. A
    gradient divided by its root could change the weights far too much.

    If the moments are the same in every step, the output is that of exact
    synchronisation from the second step on. If `backward` is 1, this also holds for the
    gradient, in the limit of many equal steps. With one worker it is plain Batch
    Normalization from the first step. The running statistics are exact, one step late.

    Unless `backward` is 0, it has no forward-mode derivative, and the second derivative
    treats the other workers' messages as constants.

    Attributes:
      memory: the weight of a step relative to the step after it, in [0, 1).
      backward: the weight of the remembered sums of the backward pass, in [0, 1]. True
        is 1 and False is 0. These sums vary from step to step as a gradient does. If
        the workers' examples differ in kind, such as shards sorted by label, 0.5 is
        better than 1.

    Raises:
      ValueError: if a weight is outside its range.

    Example:
      >>> sorted(Stale().init((3,), jnp.dtype(jnp.float32)))
      ['everyone', 'own', 'received', 'sent']
    """

    memory: float = 0.8
    backward: float | bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1:
            raise ValueError(f"`memory` must lie in [0, 1), got {self.memory}.")
        if not 0 <= self.backward <= 1:
            raise ValueError(f"`backward` must lie in [0, 1], got {self.backward}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Returns a state of zeros: an empty memory and no messages."""
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(f"`Stale` is for real inputs, got {dtype}.")
        all_zero, own_zero = jnp.zeros(shape, dtype), jnp.zeros((1, *shape), dtype)
        memory, sums = Memory._fields, Sums._fields
        return {
            "own": dict.fromkeys(memory, own_zero),
            "everyone": {**dict.fromkeys(memory, all_zero), "weight": all_zero},
            "sent": dict.fromkeys(sums, own_zero),
            "received": dict.fromkeys(sums, all_zero),
        }

    def normalize(self, call: Call, state: State) -> Normalized:
        """Normalises by the worker's own moments, merged with the remembered ones."""
        known = _received(jax.lax.stop_gradient(state), self.memory)
        others = without(known.everyone, known.own)
        # The weighted sum of the counts becomes the count of an average step.
        others = others._replace(count=others.count / jnp.maximum(known.weight, 1))
        center = known.everyone.mean
        if call.workers > 1:
            # The memory of these channels is empty; see the class.
            call = call.without_gradient_in(known.weight[0] == 0)
        sent = Sums(**state["sent"])

        def merge(own: Moments) -> tuple[Moments, Sums]:
            sums = jax.lax.stop_gradient(sums_of(own, center))
            merged = merge_moments(own, Moments(others.count, others.mean, others.var))
            if not self.backward:
                return merged, sums
            std = jnp.sqrt(merged.var + call.output.epsilon)
            std = jnp.where(std > 0, std, jnp.inf)
            mean, var = with_sums_of_others(
                merged.mean,
                merged.var,
                jax.lax.stop_gradient(std),
                (self.backward * others.gradient, self.backward * others.product),
                (sent.gradient, sent.product),
            )
            return merged._replace(mean=mean, var=var), sums

        y, sums = call.by(merge)
        # A second call of the layer in this step adds its sums to those of the first,
        # and its cotangents pass through the `sent` of the first.
        total = jax.tree.map(jnp.add, known.sent, sums)
        total = total._replace(
            gradient=_zeros_with_gradient_to(sent.gradient),
            product=_zeros_with_gradient_to(sent.product),
        )
        everyone = {**known.everyone._asdict(), "weight": known.weight}
        everyone, last = jax.tree.map(lambda part: part[0], (everyone, known.last))
        new = {
            "own": known.own._asdict(),
            "everyone": everyone,
            "sent": total._asdict(),
            # Zeros that vary over the same axes of a checked shard_map as the old ones.
            "received": {name: part - part for name, part in state["received"].items()},
        }
        return Normalized(y, last, new)


class _Known(NamedTuple):
    """The memory of a layer when a call begins; no derivative flows through it."""

    own: Memory
    everyone: Memory
    weight: jax.Array  # Sum over the remembered steps of decay^age.
    sent: Sums  # The message of this worker, in this step so far.
    last: Moments  # The moments of all workers in the last step.


def _received(state: State, decay: float) -> _Known:
    """Returns the memory after the messages of the last step were added to it."""
    own, sent = Memory(**state["own"]), Sums(**state["sent"])
    shared = {name: part[None] for name, part in state["everyone"].items()}
    before = shared.pop("weight")
    everyone, center = Memory(**shared), shared["mean"]
    received = {name: part[None] for name, part in state["received"].items()}
    received = Sums(**received)
    # The first step, and a second call within a step, have no new messages.
    is_new = received.count > 0
    accurate = is_accurate(received, center)
    last = moments_of(received, center)
    weight = jnp.where(accurate, decay * before + 1, 0)
    share = 1 / jnp.maximum(weight, 1)

    def add(memory: Memory, sums: Sums) -> Memory:
        new = with_step(memory, sums, center, decay, share)
        # Sums too far from the centre are not accurate. There the memory is cleared,
        # and the mean of the last step becomes the centre.
        zero = jnp.zeros_like(memory.count)
        cleared = Memory(zero, last.mean + zero, zero, zero, zero)
        new = jax.tree.map(lambda a, b: jnp.where(accurate, a, b), new, cleared)
        return jax.tree.map(lambda a, b: jnp.where(is_new, a, b), new, memory)

    return _Known(
        add(own, sent),
        add(everyone, received),
        jnp.where(is_new, weight, before),
        jax.tree.map(lambda part: jnp.where(is_new, 0, part), sent),
        last._replace(count=jnp.where(is_new & accurate, last.count, 0)),
    )


def _zeros_with_gradient_to(message: jax.Array) -> jax.Array:
    """Returns zeros whose cotangent is passed to the message."""
    return message - jax.lax.stop_gradient(message)


@jax.custom_vjp
def with_sums_of_others(
    mean: jax.Array,
    var: jax.Array,
    std: jax.Array,
    others: tuple[jax.Array, jax.Array],
    sent: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance; adds the other workers' sums to their cotangents.

    With `x_hat = (x - mean) / std` and g its cotangent, the cotangents of mean and
    variance are `-sum(g) / std` and `-sum(x_hat * g) / (2 std^2)`, where the sums are
    over all workers. JAX computes the cotangents from this worker's sums. The
    derivative of this function adds the sums that the others sent in earlier steps, and
    returns this worker's sums as the cotangents of `sent`.

    It has no forward-mode derivative, because a sum from another step is not a linear
    function of the tangents.

    Args:
      mean: the mean that normalises.
      var: the variance that normalises.
      std: the divisor, `sqrt(var + epsilon)`; infinite where there is no division.
      others: the other workers' sums of g and of `x_hat * g`.
      sent: arrays of any value; their cotangents are the sums of this worker.

    Returns:
      `mean` and `var`.
    """
    del std, others, sent
    return mean, var


def _forward(mean, var, std, others, sent):
    del sent
    return (mean, var), (std, others)


def _backward(kept, cotangents):
    std, others = kept
    dmean, dvar = cotangents
    divided = jnp.isfinite(std)
    std = jnp.where(divided, std, 1)
    sent = (-dmean * std, -2 * dvar * jnp.square(std))
    gradient, product = (jnp.where(divided, part, 0) for part in others)
    dmean = dmean - gradient / std
    dvar = dvar - product / (2 * jnp.square(std))
    return dmean, dvar, jnp.zeros_like(std), jax.tree.map(jnp.zeros_like, others), sent


with_sums_of_others.defvjp(_forward, _backward)


def sums_of(moments: Moments, center: jax.Array) -> Sums:
    """Returns the moments as sums about a centre.

    The sums of the backward pass are 0, because they are not known yet.
    """
    count = jnp.broadcast_to(moments.count, moments.mean.shape)
    delta = (moments.mean - center) + moments.tail
    square = moments.var + jnp.square(delta)
    # An empty worker sends 0, whatever its mean.
    offset, square = (jnp.where(count > 0, count * part, 0) for part in (delta, square))
    return Sums(count, offset, square, jnp.zeros_like(delta), jnp.zeros_like(delta))


def moments_of(sums: Sums, center: jax.Array) -> Moments:
    """Returns the moments from sums about a centre, up to rounding."""
    divisor = jnp.maximum(sums.count, 1)
    mean, var, tail = moments_lib.about(
        center, sums.offset / divisor, sums.square / divisor
    )
    return Moments(sums.count, mean, jnp.maximum(var, 0), tail)


def is_accurate(sums: Sums, center: jax.Array) -> jax.Array:
    """Returns where the sums give an accurate variance.

    There the centre is within 30 standard deviations of the mean. The rounding of the
    sums is then magnified a thousand times at most, and the variance is correct to
    about 1e-4. A constant channel is accurate if the centre is its value, up to
    rounding.
    """
    divisor = jnp.maximum(sums.count, 1)
    offset = sums.offset / divisor
    var = sums.square / divisor - jnp.square(offset)
    rounding = 16 * jnp.finfo(offset.dtype).eps * jnp.abs(center)
    return (var >= 0.001 * jnp.square(offset)) | (jnp.abs(offset) <= rounding)


def with_step(
    memory: Memory,
    sums: Sums,
    center: jax.Array,
    decay: float,
    share: jax.Array,
) -> Memory:
    """Returns the memory after one more step.

    Args:
      memory: the memory of the steps before this one.
      sums: the sums of this step.
      center: the centre of these sums.
      decay: the weight of a step relative to the step after it, in [0, 1).
      share: the weight of this step among all: `1 / sum over steps of decay^age`.
    """
    old = Moments(decay * memory.count, memory.mean, memory.var)
    merged = moments_lib.merge_moments(old, moments_of(sums, center))
    gradient, product = (
        average + share * (now - average)
        for average, now in (
            (memory.gradient, sums.gradient),
            (memory.product, sums.product),
        )
    )
    return Memory(merged.count, merged.mean, merged.var, gradient, product)


def without(everyone: Memory, own: Memory) -> Memory:
    """Returns each worker's memory of the other workers, `[workers, C]`.

    By the law of total variance, the squares about the mean of all workers are the sum
    of this worker's squares and those of the others.

    Args:
      everyone: the memory of all workers together, `[1, C]`.
      own: the memory that each worker has of itself, `[workers, C]`.
    """
    count = everyone.count - own.count
    # If there are no other workers, the counts may differ by rounding.
    others = count > 1e-5 * everyone.count
    divisor = jnp.where(others, count, 1)
    delta = own.mean - everyone.mean
    others_delta = -delta * own.count / divisor
    square = everyone.count * everyone.var
    square = square - own.count * (own.var + jnp.square(delta))
    var = jnp.maximum(square / divisor - jnp.square(others_delta), 0)
    memory = Memory(
        count,
        everyone.mean + others_delta,
        var,
        everyone.gradient - own.gradient,
        everyone.product - own.product,
    )
    return Memory(*(jnp.where(others, part, 0) for part in memory))
