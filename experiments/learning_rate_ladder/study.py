"""Measures the steps that Batch Normalization saves: the paper's Figures 2 and 3.

The paper, Section 4.2.2, on ImageNet: Inception has its best accuracy, 72.2 %, after 31
million steps. With BN alone it takes less than half of them. With BN, 5 times the
learning rate and the changes of Section 4.2.1 it takes 14 times fewer. 30 times the
rate ends highest, at 74.8 %. Without BN the parameters overflow at 5 times the rate.
Sigmoids train with BN (69.8 %), and stay at chance without.

Expected at this size: BN-Baseline takes less than half the steps, and the best
configuration with BN at least 5 times fewer. Neither higher rate trains without BN.
Sigmoids train with BN only.

Measured: holds partly. On Fashion-MNIST BN-Baseline takes 2.7 times fewer steps and
BN-x5 6 times, or 7.7 times with two modules; on CIFAR-10 they take 3.8 and 7.5 times
fewer. No configuration takes 14 times fewer, and BN-x30 does not reach Inception's best
in a quarter of its steps. Without BN, 30 times the rate stays at chance, and 5 times
trains, but slower than the usual rate. Sigmoids reach .870 and .524 with BN, and .28
and .14 without.
"""

import dataclasses
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments import datasets, options, output, recording, running
from experiments.learning_rate_ladder import report
from experiments.networks import inception
from experiments.networks import inception_training as it

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

_QUICK = {
    "dataset": "digits",
    "steps": 600,
    "seeds": 1,
    "record_every": 20,
    "rates": (),
    "depths": (),
    "hp": it.Hyperparameters(modules=("3c", "5b"), stem_stride=1),
}


@dataclasses.dataclass(frozen=True)
class LearningRateLadder:
    """The paper's Figures 2 and 3: steps to Inception's best accuracy (35 min)."""

    dataset: datasets.Dataset = "fashion_mnist"
    """Digits are embedded; the paper used ImageNet."""
    steps: int = 10_000
    """Mini-batches of Inception; the other configurations take a share of them."""
    seeds: int = 3
    """Runs of each configuration."""
    record_every: int = 100
    """Steps between two points of the curves."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; a killed run goes on from the last."""
    test_images: int = 2000
    """The number of test images, from the start of the test split."""
    rates: tuple[float, ...] = (2, 10)
    """Further learning rates of BN and all changes, times that of Inception."""
    depths: tuple[int, ...] = (2, 5)
    """Further ladders, of as many modules: Inception, BN-x5 and BN-x30."""
    depth_seeds: int = 1
    """Runs of each configuration there."""
    workers: int = 2
    """Runs that are trained at the same time."""
    hp: it.Hyperparameters = dataclasses.field(default_factory=it.Hyperparameters)
    quick: bool = False
    """On the embedded digits, in a minute."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `learning_rate_ladder_<dataset>.json`, `.md` and `.png`."""
        config = options.quick(self, _QUICK)
        check(config)
        running.run(
            "learning_rate_ladder",
            self,
            lambda: measure(config),
            report.write,
            f"learning_rate_ladder_{config.dataset}",
        )
        forget(config)


class Rung(NamedTuple):
    """A configuration of the ladder."""

    name: str
    recipe: it.Recipe
    share: float  # The share of Inception's steps.
    modules: int | None = None  # The number of modules in a further ladder.


def check(config: LearningRateLadder) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    hp = config.hp
    recording.check(_plan_of(config, config.steps, config.seeds))
    options.check_at_least(config, test_images=1, depth_seeds=1, workers=1)
    options.check_at_least(hp, batch_size=1, stem_stride=1, l2=0)
    options.check_positive(hp, "width", "learning_rate", "final_rate")
    options.check_among(hp, inception.FIGURE5, "modules")
    if config.depths:
        options.check_among(config, DEPTHS, "depths")
    for name in ("sgd_momentum", "bn_momentum"):
        if not 0 <= getattr(hp, name) < 1:
            raise ValueError(f"`{name}` must lie in [0, 1), got {getattr(hp, name)}.")


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


def measure(config: LearningRateLadder) -> dict[str, Any]:
    """Trains all configurations; returns accuracy and loss over their trainings."""
    train, test = (_split(config, split) for split in ("train", "test"))
    test = {name: array[: config.test_images] for name, array in test.items()}
    made = _runs(config, train["image"])
    found = {}
    for plan, group in itertools.groupby(made, lambda rung: _plan(config, rung)):
        runs = [made[rung] for rung in group]
        found |= recording.train(runs, plan, train, test, _kept(config), config.workers)
    return {
        "config": options.identity(config),
        "runs": {
            rung.name: {
                "learning_rate": config.hp.learning_rate * rung.recipe.learning_rate,
                "step": recording.recorded_steps(_plan(config, rung)).tolist(),
                "accuracy": output.plain(found[rung.name]["accuracy"]),
                "loss": output.plain(found[rung.name]["loss"]),
            }
            for rung in made
        },
    }


def forget(config: LearningRateLadder) -> None:
    """Removes the checkpoints of a study whose results are on disk."""
    blank = np.zeros((1, 1, 1, 1), np.uint8)
    _kept(config).forget(_runs(config, blank).values())


def _split(config: LearningRateLadder, name: str) -> dict[str, np.ndarray]:
    images, labels = datasets.load(config.dataset, name, config.data_dir)
    return {"image": images, "label": labels}


def _plan(config: LearningRateLadder, rung: Rung) -> recording.Plan:
    records = max(1, round(rung.share * config.steps / config.record_every))
    seeds = config.depth_seeds if rung.modules else config.seeds
    return _plan_of(config, records * config.record_every, seeds)


def _plan_of(config: LearningRateLadder, steps: int, seeds: int) -> recording.Plan:
    return recording.Plan(steps, config.record_every, seeds, config.checkpoint_every)


def _kept(config: LearningRateLadder) -> recording.Kept:
    name = f"learning_rate_ladder_{config.dataset}"
    return recording.Kept(config.out, name, options.identity(config))


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
