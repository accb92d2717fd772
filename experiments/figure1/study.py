"""Repeats the paper's Figure 1: a sigmoid network with and without BN."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from experiments import datasets, options, output, recording
from experiments.figure1 import paper, report
from experiments.networks import fully_connected, mlp
from jaxbn import training

_OBSERVED = 1000  # The number of test images for the percentiles.
_POPULATION = 10_000  # The number of training images for `exact_population`.


@dataclasses.dataclass(frozen=True)
class Figure1:
    """The paper's Figure 1: accuracy and inputs of a sigmoid, with and without BN."""

    dataset: datasets.Dataset = "digits"
    """Digits are embedded, and stay grey; the paper used MNIST, made binary."""
    steps: int = 50_000
    """Mini-batches per network (paper: 50,000)."""
    seeds: int = 1
    """Runs side by side, each with its own initial weights and mini-batches."""
    record_every: int = 500
    """Steps between two points of the curves."""
    checkpoint_every: int = 5_000
    """Steps between two checkpoints; a killed run goes on from the last."""
    hp: mlp.Hyperparameters = dataclasses.field(default_factory=mlp.Hyperparameters)
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Trains, prints a table, writes `figure1_<dataset>.json`, `.md` and `.png`."""
        check(self)
        output.check_folder(self.out)
        name = self.out / f"figure1_{self.dataset}"
        if _is_finished(name.with_suffix(".json"), self):
            forget(self)
            print(report.write(name.with_suffix(".json")))
            print(
                f"\nThis run is finished: {name}.json. Remove it, or give another "
                "`--out`, to train again."
            )
            return
        with options.interruptible():
            records = train(self)
        result = report.summarize(identity(self), recorded_steps(self), records)
        output.write_result(name.with_suffix(".json"), "figure1", self, result)
        text = report.write(name.with_suffix(".json"))
        forget(self)
        print(text)
        print(f"Written: {name}.png, {name}.md and {name}.json")


def check(config: Figure1) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    recording.check(_plan(config))
    hp = config.hp
    options.check_at_least(hp, batch_size=1, hidden=1)
    options.check_positive(hp, "learning_rate", "init_std", "decay", "ink")
    options.check_weights(hp, "sgd_momentum", "bn_momentum")
    pixels = datasets.PIXELS[config.dataset]
    if not pixels.binary and hp.ink != mlp.Hyperparameters.ink:
        raise ValueError(
            f"`ink` must be left out for {pixels.title}: only binary images have a "
            f"threshold, got {hp.ink}."
        )


def train(config: Figure1) -> report.Records:
    """Trains both networks on all seeds, and resumes a run that was killed.

    Returns:
      For each network `<network>/accuracy`, `[records, seeds]`, and
      `<network>/percentiles`, `[records, seeds, 3, units]`. The first record is that
      after `record_every` steps.

    Raises:
      ValueError: as in `check`, or if a batch is larger than the data set.
    """
    check(config)
    train_split, test = (_split(config, name) for name in ("train", "test"))
    held_out = {**test, "population": train_split["image"][:_POPULATION]}
    pixels = test["image"].shape[1]
    found = recording.train(
        [_run(config, network, pixels) for network in mlp.NETWORKS],
        _plan(config),
        train_split,
        held_out,
        _kept(config),
        workers=len(mlp.NETWORKS),
    )
    return {
        f"{network}/{name}": values
        for network, records in found.items()
        for name, values in records.items()
    }


def forget(config: Figure1) -> None:
    """Removes the checkpoints of a run whose results are on disk."""
    _kept(config).forget(_run(config, network, 1) for network in mlp.NETWORKS)


def recorded_steps(config: Figure1) -> np.ndarray:
    """Returns the steps after which records are made, `[records]`."""
    return recording.recorded_steps(_plan(config))


def identity(config: Figure1) -> dict[str, Any]:
    """Returns the options that decide the numbers.

    These are all but the folders and the interval of checkpoints.
    """
    fields = options.identity(config)
    del fields["checkpoint_every"]
    if not datasets.PIXELS[config.dataset].binary:
        fields["hp"]["ink"] = None  # It has no effect.
    return fields


def _is_finished(path: pathlib.Path, config: Figure1) -> bool:
    """Returns True if an earlier run with the same options left its result."""
    if not path.exists():
        return False
    return json.loads(path.read_text()).get("config") == identity(config)


def _plan(config: Figure1) -> recording.Plan:
    return recording.Plan(
        config.steps, config.record_every, config.seeds, config.checkpoint_every
    )


def _kept(config: Figure1) -> recording.Kept:
    name = f"figure1_{config.dataset}"
    return recording.Kept(config.out, name, identity(config))


def _split(config: Figure1, name: str) -> dict[str, np.ndarray]:
    return datasets.flat_pixels(config.dataset, name, config.hp.ink, config.data_dir)


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
