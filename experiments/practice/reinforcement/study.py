"""Compares Batch Normalization and Batch Renormalization in reinforcement learning.

Bhatt et al. (2024, CrossQ): with Batch Renormalization in its networks, and both states
of a transition in one batch of the critics, soft actor-critic needs no target networks
and fewer steps in the environment. Without normalisation it needs target networks.

A pendulum is swung up and held. Four agents differ only in normalisation and target
networks. The learning rate of each is chosen by other seeds than those that are shown.
Expected: the agents with normalisation learn in fewer steps than the one with target
networks, and the one with neither does not reach a return of -200. Batch
Renormalization is no worse than Batch Normalization.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.framework import options, output, study
from experiments.practice.reinforcement import agent, figure, report
from jaxbn import variants
from jaxbn.linen import BatchNorm

_CHOICE = 1000  # The first of the seeds that choose the learning rate.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinforcement(study.Study):
    """Swings up a pendulum with BN, Renorm and without, as CrossQ (25 minutes)."""

    name = "reinforcement"
    small: ClassVar = {
        "steps": 1200,
        "rates": (1e-3,),
        "records": 3,
        "seeds": 2,
        "seeds_of_choice": 1,
        "units": 16,
        "batch_size": 32,
        "random": 200,
        "warmup": 300,
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    steps: int = 8000
    """The number of steps in the environment; each is followed by one update."""
    records: int = 20
    """The number of points of the curves; `steps` must be a multiple of it."""
    episodes: int = 10
    """The number of episodes without exploration per record."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    """The learning rates of Adam from which each agent's is chosen."""
    seeds: int = 5
    """The number of trainings that are shown."""
    seeds_of_choice: int = 2
    """The number of other trainings by which the learning rate is chosen."""
    units: int = 64
    """The number of units in each of two hidden layers."""
    batch_size: int = 128
    """The number of transitions in a mini-batch."""
    random: int = 400
    """The number of first steps with random actions and without updates."""
    momentum: float = 0.99
    """The momentum of the running statistics."""
    warmup: int = 1000
    """The updates in which Batch Renormalization is Batch Normalization."""

    def check(self) -> None:
        options.check_at_least(
            self, records=2, episodes=1, seeds=1, seeds_of_choice=1, units=1,
            batch_size=2, random=1, warmup=0, steps=self.random + 1,
        )  # fmt: skip
        options.check_weights(self, "momentum")
        options.check_positive(self, "rates")
        if self.steps % self.records:
            raise ValueError(
                f"`steps` must be a multiple of `records`, got {self.steps} and "
                f"{self.records}."
            )

    def results(self, known: output.Result) -> Iterator[output.Result]:
        same = known.get("options") == self.identity()
        result: dict[str, Any] = {
            "options": self.identity(),
            "step": [self.steps // self.records * (k + 1) for k in range(self.records)],
            "agents": dict(known["agents"]) if same else {},
        }
        for name, (norm, target) in _agents(self).items():
            if name not in result["agents"]:
                result["agents"][name] = self._agent(norm, target)
                yield result

    def _agent(self, norm: agent.Norm, target: bool) -> dict[str, Any]:
        """Returns the returns by rate of the choice, and those of the best rate."""
        choice = {
            str(rate): self._returns(norm, target, rate, _CHOICE, self.seeds_of_choice)
            for rate in self.rates
        }
        best = max(self.rates, key=lambda rate: np.mean(choice[str(rate)]))
        shown = self._returns(norm, target, best, 0, self.seeds)
        return {
            "choice": {rate: float(np.mean(found)) for rate, found in choice.items()},
            "rate": best,
            "returns": shown.round(1).tolist(),
        }

    def _returns(
        self, norm: agent.Norm, target: bool, rate: float, first: int, seeds: int
    ) -> np.ndarray:
        """Returns the mean return at every record, `[records, seeds]`."""
        setting = agent.Setting(
            norm, target, rate, self.units, self.batch_size, self.random
        )
        actor = agent.Agent(setting)

        def train(seed: jax.Array) -> jax.Array:
            begin, steps, tests = jax.random.split(jax.random.key(seed), 3)

            def record(state: agent.State, keys: Any) -> Any:
                of_steps, of_test = keys
                state, _ = jax.lax.scan(
                    lambda state, key: (actor.step(state, key), None), state, of_steps
                )
                return state, actor.returns(state, of_test, self.episodes)

            keys = (
                jax.random.split(steps, (self.records, self.steps // self.records)),
                jax.random.split(tests, self.records),
            )
            return jax.lax.scan(record, actor.init(begin, self.steps), keys)[1]

        found = jax.jit(jax.vmap(train))(first + jnp.arange(seeds))
        # A diverged agent counts as one that hangs down for a whole episode.
        return np.nan_to_num(np.asarray(found, np.float64).T, nan=report.WORST)


def _agents(config: Reinforcement) -> dict[str, tuple[agent.Norm, bool]]:
    renorm = variants.Renorm(warmup_steps=config.warmup)
    make = functools.partial(BatchNorm, momentum=config.momentum, epsilon=1e-3)
    return {
        "Batch Renormalization": (functools.partial(make, variant=renorm), False),
        "Batch Normalization": (make, False),
        "none, target networks": (None, True),
        "none": (None, False),
    }
