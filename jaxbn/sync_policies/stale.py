"""The terms of the other workers from earlier steps: no layer waits for another device.

Exact synchronisation, forward and backward, but with the peers' terms from the past: a
worker merges its own moments with a decaying memory of those of its peers, and adds
their remembered sums of the backward pass to its own. Nothing has to arrive within the
step, so that one collective after it serves all layers.
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
    """A worker's own moments of now, merged with its peers' of the steps before.

    In the first step a worker normalises by its own examples alone, and passes no
    gradient to its inputs: the variance of a few examples may be almost nothing, and a
    gradient over its root would throw the weights far off. From then on, with equal
    moments at every step it is exact synchronisation (forward only where `backward` is
    not all); with one worker it is plain Batch Normalization from the first step. The
    running statistics are exact, one step late.

    It has no forward-mode derivative with `backward`; the second derivative takes what
    peers said as constant.

    Attributes:
      memory: how much of a step is remembered in the next one, in [0, 1).
      backward: how much of the remembered sums of the backward pass is added, in
        [0, 1]; True is all, False none. They are as noisy as a step is: where workers
        see examples of different kinds, such as shards sorted by label, half of them is
        better than all. Its messages are the cotangents of `said`; `jaxbn.training`
        takes them.
    """

    memory: float = 0.8
    backward: float | bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1:
            raise ValueError(f"`memory` must lie in [0, 1), got {self.memory}.")
        if not 0 <= self.backward <= 1:
            raise ValueError(f"`backward` must lie in [0, 1], got {self.backward}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Nothing remembered, said or heard."""
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
        """By own moments and remembered ones."""
        known = _learn(jax.lax.stop_gradient(state), self.memory)
        others = peers.without(known.everyone, known.own)
        others = others._replace(count=others.count / jnp.maximum(known.weight, 1))
        center = known.everyone.mean
        if call.workers > 1:
            call = call.holding(known.weight[0] == 0)
        said = peers.Sums(**state["said"])
        now = []  # What is said of this call.

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
        # A second call of the layer in this step adds to what the first has said, and
        # its cotangents pass through the first one's.
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
    """What a layer knows when a call begins: no derivative is taken of it.

    Each worker's own is `[workers here, C]`, what is the same for all `[1, C]`.
    """

    own: peers.Memory
    everyone: peers.Memory
    weight: jax.Array  # Sum over the remembered steps of decay^age.
    said: peers.Sums  # By this worker, in this step so far.
    last: Moments  # Of all workers in the last step.


def _learn(state: State, decay: float) -> _Known:
    """Takes in what was heard after the last step, once."""
    own, said = peers.Memory(**state["own"]), peers.Sums(**state["said"])
    shared = {name: part[None] for name, part in state["everyone"].items()}
    before = shared.pop("weight")
    everyone, center = peers.Memory(**shared), shared["mean"]
    heard = peers.Sums(**{name: part[None] for name, part in state["heard"].items()})
    # In the first step, and in a second call within one, there are none.
    news = heard.count > 0
    near = peers.is_accurate(heard, center)
    last = peers.moments_of(heard, center)
    weight = jnp.where(near, decay * before + 1, 0)
    share = 1 / jnp.maximum(weight, 1)

    def learn(memory: peers.Memory, sums: peers.Sums) -> peers.Memory:
        made = peers.remembered(memory, sums, center, decay, share)
        # Too far from the centre to be accurate: it begins anew about the new mean.
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
    """0, whose cotangent is that of the message."""
    return message - jax.lax.stop_gradient(message)
