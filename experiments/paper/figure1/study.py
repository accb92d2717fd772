"""Repeats the paper's Figure 1: a sigmoid network with and without BN.

The paper, Section 4.1: on MNIST the network with BN trains faster and ends higher, and
the inputs of its sigmoids move less. `--sweep` repeats it for the settings that the
paper leaves open.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from experiments.data import datasets
from experiments.framework import options, output, recording, training_study
from experiments.networks import fully_connected, mlp
from experiments.paper.figure1 import figure, paper, report, sweep
from jaxbn import training

_OBSERVED = 1000  # The number of test images for the percentiles.
_POPULATION = 10_000  # The number of training images for `exact_population`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure1(training_study.TrainingStudy):
    """Repeats Figure 1: accuracy and inputs of a sigmoid, with and without BN."""

    name = "figure1"
    former_names: ClassVar = {"figure1_sweep": ["--sweep"]}
    small: ClassVar = {"steps": 10_000}

    dataset: datasets.Dataset = "digits"
    """The data set. `digits` needs no preparation and stays grey; the paper used MNIST,
    made binary."""
    steps: int = 50_000
    """The number of mini-batches per network (paper: 50,000)."""
    seeds: int = 1
    """The number of trainings side by side, each with its own initial weights and
    mini-batches."""
    record_every: int = 500
    """The number of steps between two points of the curves."""
    checkpoint_every: int = 5_000
    """The number of steps between two checkpoints, from which a killed run resumes."""
    sweep: bool = False
    """Try many values of the settings that the paper leaves open, on MNIST (about 40
    minutes). Only the options `steps`, `seeds` and the folders apply then."""
    hp: mlp.Hyperparameters = dataclasses.field(default_factory=mlp.Hyperparameters)

    @staticmethod
    def report(result: output.Result) -> str:
        return (sweep if "rows" in result else report).table(result)

    @staticmethod
    def draw(result: output.Result) -> Any:
        return {} if "rows" in result else figure.draw(result)

    def check(self) -> None:
        hp = self.hp
        options.check_at_least(hp, batch_size=1, hidden=1)
        options.check_positive(hp, "learning_rate", "init_std", "decay", "ink")
        options.check_weights(hp, "sgd_momentum", "bn_momentum")
        pixels = datasets.PIXELS[self.dataset]
        if not pixels.binary and hp.ink != mlp.Hyperparameters.ink:
            raise ValueError(
                f"`ink` must be left out for {pixels.title}: only binary images have a "
                f"threshold, got {hp.ink}."
            )
        super().check()

    def file(self) -> str:
        return "figure1_sweep" if self.sweep else f"figure1_{self.dataset}"

    def plan(self) -> recording.Plan:
        return dataclasses.replace(
            super().plan(), checkpoint_every=self.checkpoint_every
        )

    def identity(self) -> dict[str, Any]:
        fields = super().identity()
        for name in ("checkpoint_every", "quick", "sweep"):
            del fields[name]
        if not datasets.PIXELS[self.dataset].binary:
            fields["hp"]["ink"] = None  # The threshold has no effect.
        return fields

    def results(self, known: output.Result) -> Iterator[output.Result]:
        if self.sweep:
            yield from self._sweep(known.get("rows", []))
        elif known.get("config") == self.identity():
            print(
                f"This run is finished: {self.out / self.file()}.json. Remove it, or "
                "give another `--out`, to train again."
            )
            yield known
        else:
            steps = np.array(self.recorded_steps())
            yield report.summarize(self.identity(), steps, self.records())

    def records(self) -> recording.Records:
        """Trains both networks on all seeds, and resumes a run that was killed.

        Returns:
          For each network `<network>/accuracy`, `[records, seeds]`, and
          `<network>/percentiles`, `[records, seeds, 3, units]`. The first record is
          that after `record_every` steps.

        Raises:
          ValueError: if a batch is larger than the data set.
        """
        train, test = (
            datasets.flat_pixels(self.dataset, split, self.hp.ink, self.data_dir)
            for split in ("train", "test")
        )
        runs = [_run(self, each, test["image"].shape[1]) for each in mlp.NETWORKS]
        held_out = {**test, "population": train["image"][:_POPULATION]}
        found = self.train(runs, train, held_out, workers=len(runs))
        return {
            f"{network}/{name}": values
            for network, records in found.items()
            for name, values in records.items()
        }

    def _sweep(self, rows: list[dict[str, Any]]) -> Iterator[output.Result]:
        """Yields the rows of the sweep after each training; known rows are kept."""
        for change in sweep.CHANGES:
            config = dataclasses.replace(
                self,
                dataset="mnist",
                record_every=1000,
                hp=mlp.Hyperparameters(**(sweep.BASE | change)),
            )
            if all(row["config"] != config.identity() for row in rows):
                print(change or "the pair that comes nearest")
                row = sweep.make_row(
                    change,
                    config.identity(),
                    np.array(config.recorded_steps()),
                    config.records(),
                )
                rows = [*rows, row]
                config.checkpoints().clear()
            yield {"rows": rows}


def _run(config: Figure1, network: str, pixels: int) -> recording.Run:
    hp = config.hp

    def record(state: training.TrainState, held_out: recording.Batch):
        observed = held_out["image"][:_OBSERVED]
        return {
            "accuracy": mlp.accuracy(
                hp,
                network,
                state,
                held_out,
                held_out["population"],
            ),
            "percentiles": mlp.input_percentiles(
                hp, network, state, observed, paper.PERCENTILES
            ),
        }

    return recording.Run(
        name=network,
        init=lambda key: mlp.init_states(hp, key, pixels, config.steps)[network],
        step=recording.gradient_step(fully_connected.loss_fn),
        record=record,
        batch_size=hp.batch_size,
        replacement=hp.replacement,
    )
