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

Measured: holds partly. With BN the best size is 8 with running averages (with exact
statistics 16 to 128 are equal), and accuracy falls by 40 points at 2. Group and Layer
Norm lose at most 1.5 points there. The statistics of the test batch are worse at 2,
where a unit has two values.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from experiments import datasets, options, output, recording, running
from experiments.batch_size import report
from experiments.networks import fully_connected, inference, norms
from jaxbn import linen, training

QUICK = {
    "dataset": "digits",
    "examples": 1500,
    "epochs": 8,
    "batch_sizes": (2, 16, 128),
    "hidden": (50, 50),
    "seeds": 2,
}


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """Accuracy against the batch size: Batch, Group, Layer Norm (five minutes)."""

    dataset: datasets.Dataset = "fashion_mnist"
    """The data set to train on."""
    examples: int = 10_000
    """The number of training examples, from the start of the training set."""
    epochs: int = 4
    """Passes over the examples, at every batch size alike."""
    batch_sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 128, 512)
    """Examples per mini-batch, a training each."""
    rate_per_example: float = 0.002
    """Learning rate of plain SGD over the batch size."""
    hidden: tuple[int, ...] = (100, 100, 100)
    """Units per hidden layer."""
    groups: int = 10
    """The number of groups of Group Normalization."""
    momentum: float = 0.99
    """The momentum of the running statistics: the weight of the old value."""
    seeds: int = 3
    """Trainings side by side, each with its own initial weights and mini-batches."""
    quick: bool = False
    """On the embedded digits, in a minute."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `batch_size.json`, `.md` and `.png`."""
        config = options.quick(self, QUICK)
        check(config)
        running.run("batch_size", self, lambda: measure(config), report.write)
        for size in config.batch_sizes:
            _kept(config).forget(_runs(config, size, pixels=1))


def check(config: BatchSize) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    options.check_at_least(
        config, batch_sizes=2, hidden=1, epochs=1, groups=1, seeds=1,
        examples=max(config.batch_sizes, default=2),
    )  # fmt: skip
    options.check_positive(config, "rate_per_example")
    options.check_weights(config, "momentum")
    if any(units % config.groups for units in config.hidden):
        raise ValueError(
            f"`groups` must divide the units of every layer, {config.hidden}, got "
            f"{config.groups}."
        )


def measure(config: BatchSize) -> dict[str, Any]:
    """Trains all networks; returns records by size and network.

    There is a record for every epoch and seed.
    """
    train_split, test = datasets.flat_splits(config.dataset, config.data_dir)
    train_split = {name: each[: config.examples] for name, each in train_split.items()}
    examples, pixels = train_split["image"].shape
    sizes = {}
    for size in config.batch_sizes:
        per_epoch = examples // size
        plan = recording.Plan(
            config.epochs * per_epoch, per_epoch, config.seeds, per_epoch
        )
        found = recording.train(
            _runs(config, size, pixels),
            plan,
            train_split,
            {**test, "population": train_split["image"]},
            _kept(config),
            workers=2,
        )
        sizes[str(size)] = {
            name.split(",")[0]: {
                quantity: output.plain(values) for quantity, values in each.items()
            }
            for name, each in found.items()
        }
    return {"options": options.identity(config), "sizes": sizes}


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

    def init(key: jax.Array) -> training.TrainState:
        rate = config.rate_per_example * batch_size
        return fully_connected.init_state(model, pixels, key, rate)

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

    return recording.Run(
        name=f"{name}, batch size {batch_size}",
        init=init,
        step=recording.gradient_step(fully_connected.loss_fn),
        record=record,
        batch_size=batch_size,
    )


def _kept(config: BatchSize) -> recording.Kept:
    return recording.Kept(config.out, "batch_size", options.identity(config))
