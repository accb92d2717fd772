"""An estimator as a user writes one: a frozen dataclass with an array of its own."""

import dataclasses

import jax.numpy as jnp

from jaxbn import BatchStats


@dataclasses.dataclass(frozen=True)
class Cumulative:
    """The average over all batches, with an integer that must stay one."""

    def init(self, shape, dtype):
        del dtype
        extra = {"batches": jnp.zeros((), int)}
        return BatchStats(jnp.zeros(shape), jnp.zeros(shape), extra)

    def update(self, stats, moments):
        batches = stats.extra["batches"] + 1
        return stats._replace(
            mean=stats.mean + (moments.mean - stats.mean) / batches,
            var=stats.var + (moments.var - stats.var) / batches,
            extra={"batches": batches},
        )
