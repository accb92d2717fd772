"""Measures the steps that Batch Normalization saves: the paper's Figures 2 and 3.

The paper, Section 4.2.2, on ImageNet: Inception has its best accuracy, 72.2 %, after 31
million steps. With BN alone it takes less than half of them. With BN, 5 times the
learning rate and the changes of Section 4.2.1 it takes 14 times fewer. 30 times the
rate ends highest, at 74.8 %. Without BN the parameters overflow at 5 times the rate.
Sigmoids train with BN (69.8 %), and stay at chance without.

Expected at this size: BN-Baseline takes less than half the steps, and the best
configuration with BN at least 5 times fewer. Neither higher rate trains without BN.
Sigmoids train with BN only.
"""

import dataclasses
import itertools
from typing import Any, ClassVar, NamedTuple

import numpy as np

from experiments.data import datasets
from experiments.framework import options, output, recording, training_study
from experiments.networks import inception
from experiments.networks import inception_training as it
from experiments.paper.learning_rate_ladder import figure, report

# The modules of each depth, from Figure 5. Each depth has a first and a second module
# that halve the resolution.
DEPTHS = {
    2: ("3c", "4e"),
    3: ("3c", "4e", "5b"),
    5: ("3a", "3c", "4a", "4e", "5b"),
    10: tuple(inception.FIGURE5),
}
# The share of Inception's steps. The paper's curves end after .53 (BN-Baseline), .09
# (BN-x5) and .2 of them (BN-x30). Runs with equal shares can train at the same time.
_SHARE = {"Inception": 1.0, "BN-Baseline": 1.0}
_SHARE_CHANGED = 0.25
_SHARE_TOO_FAST = 0.1  # This is enough to see whether they train.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningRateLadder(training_study.TrainingStudy):
    """Repeats Figures 2 and 3: steps to Inception's best accuracy (35 minutes)."""

    name = "learning_rate_ladder"
    small: ClassVar = {
        "dataset": "digits",
        "steps": 600,
        "seeds": 1,
        "record_every": 20,
        "rates": (),
        "depths": (),
        "hp": it.Hyperparameters(modules=("3c", "5b"), stem_stride=1),
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    steps: int = 10_000
    """The number of mini-batches of Inception; the other configurations take a share of
    them."""
    record_every: int = 100
    """The number of steps between two points of the curves."""
    checkpoint_every: int = 500
    """The number of steps between two checkpoints, from which a killed run resumes."""
    test_images: int = 2000
    """The number of test images, from the start of the test split."""
    rates: tuple[float, ...] = (2, 10)
    """Further learning rates of BN with all changes, as factors of Inception's."""
    depths: tuple[int, ...] = (2, 5)
    """The numbers of modules of further ladders, of Inception, BN-x5 and BN-x30."""
    depth_seeds: int = 1
    """The number of trainings of each configuration of the further ladders."""
    workers: int = 2
    """The number of configurations that are trained at the same time."""
    hp: it.Hyperparameters = dataclasses.field(default_factory=it.Hyperparameters)

    def file(self) -> str:
        return f"{self.name}_{self.dataset}"

    def plan(self, share: float = 1.0, seeds: int | None = None) -> recording.Plan:
        """Returns the plan of a configuration that takes a share of all steps."""
        every = self.record_every
        steps = self.steps
        if share != 1:
            steps = max(1, round(share * self.steps / every)) * every
        return recording.Plan(steps, every, seeds or self.seeds, self.checkpoint_every)

    def check(self) -> None:
        super().check()
        hp = self.hp
        options.check_at_least(self, test_images=1, depth_seeds=1, workers=1)
        options.check_at_least(hp, batch_size=1, stem_stride=1, l2=0)
        options.check_positive(hp, "width", "learning_rate", "final_rate")
        options.check_among(hp, inception.FIGURE5, "modules")
        if self.depths:
            options.check_among(self, DEPTHS, "depths")
        for name in ("sgd_momentum", "bn_momentum"):
            if not 0 <= getattr(hp, name) < 1:
                raise ValueError(
                    f"`{name}` must lie in [0, 1), got {getattr(hp, name)}."
                )

    def measure(self) -> dict[str, Any]:
        """Trains all configurations; returns accuracy and loss over their trainings."""
        train, test = (_split(self, split) for split in ("train", "test"))
        test = datasets.first(test, self.test_images)
        made = _runs(self, train["image"])
        found = {}
        for plan, group in itertools.groupby(made, lambda rung: _plan(self, rung)):
            runs = [made[rung] for rung in group]
            found |= self.train(runs, train, test, plan=plan, workers=self.workers)
        return {
            "config": self.identity(),
            "runs": {
                rung.name: {
                    "learning_rate": self.hp.learning_rate * rung.recipe.learning_rate,
                    "step": recording.recorded_steps(_plan(self, rung)).tolist(),
                    "accuracy": output.plain(found[rung.name]["accuracy"]),
                    "loss": output.plain(found[rung.name]["loss"]),
                }
                for rung in made
            },
        }


class Rung(NamedTuple):
    """A configuration of the ladder."""

    name: str
    recipe: it.Recipe
    share: float  # The share of Inception's steps.
    modules: int | None = None  # The number of modules in a further ladder.


def rungs(config: LearningRateLadder) -> list[Rung]:
    """Returns all configurations in the order of their trainings."""
    ladder = [
        Rung(name, recipe, _SHARE.get(name, _SHARE_CHANGED))
        for name, recipe in it.RECIPES.items()
    ]
    for times in (5, 30):
        recipe = it.Recipe(learning_rate=times)
        ladder.append(Rung(f"Inception-x{times}", recipe, _SHARE_TOO_FAST))
    for times in config.rates:
        ladder.append(Rung(f"BN-x{times:g}", it.accelerated(times), _SHARE_CHANGED))
    for name in report.OF_DEPTHS:
        share = _SHARE.get(name, _SHARE_CHANGED)
        for modules in config.depths:
            ladder.append(
                Rung(report.of_depth(name, modules), it.RECIPES[name], share, modules)
            )
    return ladder


def _split(config: LearningRateLadder, name: str) -> dict[str, np.ndarray]:
    images, labels = datasets.load(config.dataset, name, config.data_dir)
    return {"image": images, "label": labels}


def _plan(config: LearningRateLadder, rung: Rung) -> recording.Plan:
    return config.plan(rung.share, config.depth_seeds if rung.modules else None)


def _runs(config: LearningRateLadder, images: np.ndarray) -> dict[Rung, recording.Run]:
    pixels = it.standardizing(images)

    def run(rung: Rung) -> recording.Run:
        hp = config.hp
        if rung.modules:
            hp = dataclasses.replace(hp, modules=DEPTHS[rung.modules])
        return it.make_run(
            rung.name, hp, rung.recipe, images.shape[1:], pixels, config.steps
        )

    return {rung: run(rung) for rung in rungs(config)}
