"""Compares batch sizes at equal work and equal learning rate per example.

Ioffe (2017) on the paper's method: it is less effective with small mini-batches, where
training and inference differ. Masters and Luschi (2018): with the learning rate in
proportion to the batch size, batches of 2 to 32 train best. With Batch Normalization,
8 to 32 are advised. Wu and He (2018): Group Normalization does not depend on the batch
size, and with Batch Normalization the error rises at 4 and 2. Wu and Johnson (2021): at
such sizes part of the loss is due to the running statistics, and inference with the
statistics of the batch is better.

A network is trained for some epochs at batch sizes 2 to 512, with Batch, Group and
Layer Normalization. Running averages are debiased, because large batches give few
steps. Expected: with BN the best sizes are 8 to 32, and accuracy falls at 2, while that
of the other two does not.
"""

import dataclasses
import functools
from typing import Any, ClassVar

from experiments.data import datasets
from experiments.framework import options, output, recording, training_study
from experiments.networks import fully_connected, inference, norms
from experiments.practice.batch_size import figure, report
from jaxbn import linen, training


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSize(training_study.TrainingStudy):
    """Compares batch sizes for Batch, Group and Layer Norm (5 minutes)."""

    name = "batch_size"
    small: ClassVar = {
        "dataset": "digits",
        "examples": 1500,
        "epochs": 8,
        "batch_sizes": (2, 16, 128),
        "hidden": (50, 50),
        "seeds": 2,
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    examples: int = 10_000
    """The number of training examples, from the start of the training set."""
    epochs: int = 4
    """The number of passes over the examples, equal for all batch sizes."""
    batch_sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 128, 512)
    """The batch sizes that are compared."""
    rate_per_example: float = 0.002
    """The learning rate of plain SGD, divided by the batch size."""
    hidden: tuple[int, ...] = (100, 100, 100)
    """The number of units of each hidden layer."""
    groups: int = 10
    """The number of groups of Group Normalization."""
    momentum: float = 0.99
    """The momentum of the running statistics: the weight of the old value."""

    def check(self) -> None:
        options.check_at_least(
            self, batch_sizes=2, hidden=1, epochs=1, groups=1, seeds=1,
            examples=max(self.batch_sizes, default=2),
        )  # fmt: skip
        options.check_positive(self, "rate_per_example")
        options.check_weights(self, "momentum")
        if any(units % self.groups for units in self.hidden):
            raise ValueError(
                f"`groups` must divide the units of every layer, {self.hidden}, got "
                f"{self.groups}."
            )

    def measure(self) -> dict[str, Any]:
        """Trains all networks; returns records by size and network.

        There is a record for every epoch and seed.
        """
        train_split, test = self.splits()
        train_split = datasets.first(train_split, self.examples)
        examples, pixels = train_split["image"].shape
        sizes = {}
        for size in self.batch_sizes:
            per_epoch = examples // size
            plan = recording.Plan(
                self.epochs * per_epoch, per_epoch, self.seeds, per_epoch
            )
            found = self.train(
                _runs(self, size, pixels),
                train_split,
                {**test, "population": train_split["image"]},
                plan=plan,
                workers=2,
            )
            sizes[str(size)] = {
                name.split(",")[0]: output.plain(each) for name, each in found.items()
            }
        return {"options": self.identity(), "sizes": sizes}


def _runs(config: BatchSize, batch_size: int, pixels: int) -> list[recording.Run]:
    made = {
        "BN": functools.partial(
            linen.BatchNorm, momentum=config.momentum, estimator="debiased"
        ),
        "GN": norms.group(config.groups),
        "LN": norms.LAYER,
    }
    return [_run(config, name, norm, batch_size, pixels) for name, norm in made.items()]


def _run(
    config: BatchSize, name: str, norm: Any, batch_size: int, pixels: int
) -> recording.Run:
    model = fully_connected.FullyConnected(config.hidden, "relu", norm)

    def record(state: training.TrainState, held_out: recording.Batch):
        made = {"running": fully_connected.evaluate(state, held_out)["accuracy"]}
        if name == "BN":
            own = functools.partial(linen.BatchNorm, momentum=0.0, unbiased=False)
            batch_alone = model.clone(norm=own)
            stats = inference.population(
                batch_alone, state.params, held_out["population"]
            )
            made["population"] = inference.accuracy(
                batch_alone, state.params, stats, held_out
            )
            made["batch"] = inference.accuracy_by_batches(
                batch_alone, state.params, held_out, batch_size
            )
        return made

    rate = config.rate_per_example * batch_size
    return fully_connected.run(
        f"{name}, batch size {batch_size}", model, pixels, rate, batch_size, record
    )
