"""The parts of the study, each a set of trainings that are compared."""

import dataclasses
import math
from typing import Any

from experiments.framework import recording
from experiments.library.sync_policies import reasons, trainings
from experiments.library.sync_policies.trainings import Setting
from experiments.networks import fully_connected, residual

COMPARED = ("exact", "local", "stale, forward", "stale")
"""The policies that every table contains."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Trainings that are compared with each other."""

    name: str
    setting: Setting
    runs: dict[str, recording.Run]  # The keys are names of policies.


def parts(config: Any, shape: tuple[int, ...], white: float = 1.0) -> list[Part]:
    """Returns the parts of the study that `config.tables` names.

    Args:
      config: the options, a `study.SyncPolicies`.
      shape: the shape of an image.
      white: the value that a pixel of 0 has in the negative image.
    """
    convolves = config.network == "residual"
    recipe = trainings.Recipe(
        make_model=_residual(config) if convolves else _fully_connected(config),
        shape=shape if convolves else (math.prod(shape),),
        convolves=convolves,
        steps=config.steps,
        rate=config.learning_rate,
        momentum=config.momentum,
        running=config.average,
        white=white,
    )

    def part(name: str, setting: Setting, names: Any, **more: Any) -> Part:
        runs = {
            policy: trainings.run(recipe, setting, policy, **more)
            for policy in names
            if setting.examples > 1 or policy not in trainings.NEED_SEVERAL_EXAMPLES
        }
        # Two tables may contain the same training. The name of the table keeps their
        # checkpoints apart.
        return Part(
            name,
            setting,
            {p: run._replace(name=f"{name}: {run.name}") for p, run in runs.items()},
        )

    workers = [Setting(config.workers, each) for each in config.examples]
    usual = Setting(config.workers, config.usual)
    by_label = [
        Setting(config.workers, config.usual * n, by_label=True) for n in (1, 2)
    ]
    made = [part("examples", setting, config.policies) for setting in workers]
    made += [part("sorted", setting, config.policies) for setting in by_label]
    many = Setting(config.many_workers, config.usual)
    made.append(part("many", many, COMPARED))
    made.append(part("rates", usual, COMPARED, rates=config.rates))
    names = [
        f"stale, a = {memory}{forward}"
        for memory in config.memories
        for forward in ("", ", forward")
    ]
    made += [part("memory", setting, names) for setting in (usual, by_label[0])]
    switch = usual._replace(switch=True)
    made.append(part("switch", switch, ("exact", "local", "stale", "stale, a = 0.99")))
    for setting in (usual, by_label[0]):
        beside = reasons.beside_exact(recipe, setting)
        made.append(part("why", setting, COMPARED[1:], more=beside))
    drift = reasons.drifting(
        trainings.run(recipe, usual, "exact"), recipe, config.record_every
    )
    made.append(Part("drift", usual, {"exact": drift}))
    return [each for each in made if each.name in config.tables]


def _fully_connected(config: Any) -> trainings.MakeModel:
    return lambda norm: fully_connected.FullyConnected(config.hidden, "relu", norm)


def _residual(config: Any) -> trainings.MakeModel:
    return lambda norm: residual.Residual(config.channels, norm=norm)
