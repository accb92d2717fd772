"""Synchronisation by messages of earlier steps: no layer waits for another device.

It computes what exact synchronisation computes, forward and backward, but takes the
other workers' terms from earlier steps. A worker merges its own moments with a decaying
memory of the other workers' moments. It adds their remembered sums of the backward pass
to its own. No message has to arrive within the step, so that one collective after the
step serves all layers.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbn.call import Call
from jaxbn.core import echo, peers
from jaxbn.core.moments import Moments, merge_moments
from jaxbn.sync_policies.policy import Normalized, State


@dataclasses.dataclass(frozen=True)
class Stale:
    """A worker's current moments, merged with the others' moments of earlier steps.

    In the first step a worker normalises by its own examples alone and passes no
    gradient to its inputs. The variance of a few examples may be almost zero, and a
    gradient divided by its root would move the weights far off.

    From the second step on, if the moments are the same in every step, the result is
    that of exact synchronisation. (This holds for the forward pass only, unless
    `backward` is 1.) With one worker it is plain Batch Normalization from the first
    step. The running statistics are exact, one step late.

    With `backward` it has no forward-mode derivative, and the second derivative treats
    the other workers' messages as constants.

    Attributes:
      memory: the weight of a step relative to the next one, in [0, 1).
      backward: the weight of the remembered sums of the backward pass, in [0, 1]. True
        is 1 and False is 0. These sums are as noisy as a step is. If workers see
        examples of different kinds, such as shards sorted by label, 0.5 is better than
        1. The messages of the backward pass are the cotangents of `said`;
        `jaxbn.training` passes them to `exchange`.
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
        memory, sums = peers.Memory._fields, peers.Sums._fields
        return {
            "own": dict.fromkeys(memory, own_zero),
            "everyone": {**dict.fromkeys(memory, all_zero), "weight": all_zero},
            "said": dict.fromkeys(sums, own_zero),
            "heard": dict.fromkeys(sums, all_zero),
        }

    def normalize(self, call: Call, state: State) -> Normalized:
        """Normalises by the worker's own moments, merged with the remembered ones."""
        known = _learn(jax.lax.stop_gradient(state), self.memory)
        others = peers.without(known.everyone, known.own)
        others = others._replace(count=others.count / jnp.maximum(known.weight, 1))
        center = known.everyone.mean
        if call.workers > 1:
            call = call.holding(known.weight[0] == 0)
        said = peers.Sums(**state["said"])
        now = []  # The sums that this call sends.

        def merge(mine: Moments) -> Moments:
            now.append(jax.lax.stop_gradient(peers.sums_of(mine, center)))
            remembered = Moments(others.count, others.mean, others.var)
            made = merge_moments(mine, remembered)
            if not self.backward:
                return made
            std = jnp.sqrt(made.var + call.output.epsilon)
            std = jnp.where(std > 0, std, jnp.inf)
            mean, var = echo.echo(
                made.mean,
                made.var,
                jax.lax.stop_gradient(std),
                (self.backward * others.gradient, self.backward * others.product),
                (said.gradient, said.product),
            )
            return made._replace(mean=mean, var=var)

        y = call.by(merge)
        # A second call of the layer in this step adds its sums to those of the first,
        # and its cotangents pass through the `said` of the first.
        total = jax.tree.map(jnp.add, known.said, now[0])
        total = total._replace(
            gradient=_silent(said.gradient), product=_silent(said.product)
        )
        everyone = {**known.everyone._asdict(), "weight": known.weight}
        everyone, last = jax.tree.map(lambda part: part[0], (everyone, known.last))
        new = {
            "own": known.own._asdict(),
            "everyone": everyone,
            "said": total._asdict(),
            "heard": {name: part - part for name, part in state["heard"].items()},
        }
        return Normalized(y, last, new)


class _Known(NamedTuple):
    """The memory of a layer when a call begins; no derivative flows through it.

    Entries per worker are `[workers on this device, C]`. Entries that all workers share
    are `[1, C]`.
    """

    own: peers.Memory
    everyone: peers.Memory
    weight: jax.Array  # Sum over the remembered steps of decay^age.
    said: peers.Sums  # The message of this worker, in this step so far.
    last: Moments  # The moments of all workers in the last step.


def _learn(state: State, decay: float) -> _Known:
    """Adds the messages received after the last step to the memory, once."""
    own, said = peers.Memory(**state["own"]), peers.Sums(**state["said"])
    shared = {name: part[None] for name, part in state["everyone"].items()}
    before = shared.pop("weight")
    everyone, center = peers.Memory(**shared), shared["mean"]
    heard = peers.Sums(**{name: part[None] for name, part in state["heard"].items()})
    # The first step, and a second call within a step, have no new messages.
    news = heard.count > 0
    near = peers.is_accurate(heard, center)
    last = peers.moments_of(heard, center)
    weight = jnp.where(near, decay * before + 1, 0)
    share = 1 / jnp.maximum(weight, 1)

    def learn(memory: peers.Memory, sums: peers.Sums) -> peers.Memory:
        made = peers.remembered(memory, sums, center, decay, share)
        # Sums too far from the centre are not accurate. There the memory is cleared,
        # and its centre becomes the new mean.
        zero = jnp.zeros_like(memory.count)
        anew = peers.Memory(zero, last.mean + zero, zero, zero, zero)
        made = jax.tree.map(lambda a, b: jnp.where(near, a, b), made, anew)
        return jax.tree.map(lambda a, b: jnp.where(news, a, b), made, memory)

    return _Known(
        learn(own, said),
        learn(everyone, heard),
        jnp.where(news, weight, before),
        jax.tree.map(lambda part: jnp.where(news, 0, part), said),
        last._replace(count=jnp.where(news & near, last.count, 0)),
    )


def _silent(message: jax.Array) -> jax.Array:
    """Returns zeros whose cotangent is passed to the message."""
    return message - jax.lax.stop_gradient(message)
