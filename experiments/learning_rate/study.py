"""Measures the range of learning rates of a network, with and without BN.

The paper, Sections 1, 3.3 and 4.2.2: Batch Normalization "enables higher learning
rates", "prevents small changes in layer parameters from amplifying", and "allows the
use of saturating nonlinearities". Without it, a rate of 5 times the usual made the
parameters of Inception "reach machine infinity".

Expected: with BN a network trains at rates that are several times higher, without
diverging, for every nonlinearity. It also trains at low rates, where the sigmoid
network without BN does not leave its plateau.

Measured: with BN a network works at rates up to 3.2 (tanh, ReLU) and 10 (sigmoid), over
3 decades. Without it tanh works up to .3 over 1.5 decades, ReLU up to .1 over 1, and
sigmoid at no rate. With BN no seed diverged. At the highest rate both kinds end near
chance.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments import datasets, options, output, recording, running
from experiments.learning_rate import report
from experiments.networks import fully_connected, grids

_QUICK = {"dataset": "digits", "hidden": (30, 30, 30), "steps": 200}


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """Accuracy and divergence over four decades of learning rates (2 min)."""

    dataset: datasets.Dataset = "fashion_mnist"
    """Digits are embedded."""
    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu")
    """The activations of the hidden layers, with a pair of networks for each."""
    hidden: tuple[int, ...] = (50, 50, 50)
    """Units per hidden layer."""
    lowest: float = 10**-2.5
    """Learning rate of plain SGD."""
    highest: float = 10**1.5
    """Learning rate of plain SGD."""
    rates: int = 9
    """From the lowest to the highest, evenly in their logarithm."""
    batch_size: int = 60
    """Examples per mini-batch."""
    steps: int = 600
    """Mini-batches per network; a multiple of 4."""
    seeds: int = 3
    """Side by side."""
    quick: bool = False
    """On the embedded digits, in a minute."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `learning_rate.json`, `.md` and `.png`."""
        config = options.quick(self, _QUICK)
        check(config)
        running.run("learning_rate", self, lambda: measure(config), report.write)
        _kept(config).forget(_runs(config, 1))


def check(config: LearningRate) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    options.check_at_least(config, rates=2, hidden=1, batch_size=1, steps=4)
    options.check_among(config, fully_connected.KERNEL_INITS, "activations")
    grids.check(config)
    recording.check(_plan(config))


def measure(config: LearningRate) -> dict[str, Any]:
    """Trains all networks; returns their accuracies at the end."""
    train, test = datasets.flat_splits(config.dataset, config.data_dir)
    runs = _runs(config, train["image"].shape[1])
    found = recording.train(runs, _plan(config), train, test, _kept(config))
    return {
        "config": options.identity(config),
        "values": output.plain(_rates(config), 6),
        "accuracy": {
            activation: {
                network: grids.accuracies(found[f"{network}_{activation}"])
                for network in report.LABELS
            }
            for activation in config.activations
        },
    }


def _rates(config: LearningRate) -> np.ndarray:
    return np.geomspace(config.lowest, config.highest, config.rates)


def _plan(config: LearningRate) -> recording.Plan:
    return recording.Plan(config.steps, config.steps // 4, config.seeds, config.steps)


def _kept(config: LearningRate) -> recording.Kept:
    return recording.Kept(config.out, "learning_rate", options.identity(config))


def _runs(config: LearningRate, pixels: int) -> list[recording.Run]:
    made = []
    for activation in config.activations:
        for network in report.LABELS:
            without = {} if network == "with_bn" else {"norm": None}
            model = fully_connected.FullyConnected(config.hidden, activation, **without)
            made.append(
                grids.run(
                    f"{network}_{activation}",
                    model,
                    pixels,
                    config.batch_size,
                    _rates(config).tolist(),
                    hidden=[1.0] * config.rates,
                    last=[1.0] * config.rates,
                )
            )
    return made
