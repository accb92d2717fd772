"""An estimator as a user writes one: a frozen dataclass with a state of its own."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxbn


class Sums(NamedTuple):
    """Sums over all batches, with an integer that must stay one."""

    mean: jax.Array
    var: jax.Array
    batches: jax.Array


@dataclasses.dataclass(frozen=True)
class Cumulative:
    """The average over all batches; its state begins with sums, not the estimate."""

    def init(self, shape, dtype):
        return Sums(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((), int))

    def update(self, state, moments):
        mean, var = state.mean + moments.mean, state.var + moments.var
        return Sums(mean, var, state.batches + 1)

    def estimate(self, state):
        batches = jnp.maximum(state.batches, 1)
        return jaxbn.BatchStats(state.mean / batches, state.var / batches)
