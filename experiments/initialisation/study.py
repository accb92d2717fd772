"""Measures the effect of the scale of the initial weights, with and without BN.

The paper, abstract and Section 3.3: Batch Normalization "allows us to [...] be less
careful about initialization", and back-propagation through a layer "is unaffected by
the scale of its parameters".

Expected: with BN the hidden layers train from scales over several decades, and without
it from one scale. With BN they do not train from all scales, for three reasons. The
softmax layer is not normalised, epsilon outweighs a tiny variance, and small steps turn
large weights slowly. A third network starts its softmax layer with the usual scale.

Measured: accuracy is near the best over 3 to 4 decades with BN, and over half a decade
without. The hidden layers learn from all scales between 1e-3 and 10.
"""

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import numpy as np

from experiments import datasets, options, output, recording, running
from experiments.initialisation import report
from experiments.networks import fully_connected, grids

# The learning rates of plain SGD for all networks. The network without BN does well
# with them.
RATES = {"sigmoid": 1.0, "tanh": 0.1, "relu": 0.1}

_QUICK = {"dataset": "digits", "hidden": (30, 30, 30), "steps": 200}


@dataclasses.dataclass(frozen=True)
class Initialisation:
    """Final accuracy over four decades of initial weight scales (2 min)."""

    dataset: datasets.Dataset = "fashion_mnist"
    """Digits are embedded."""
    activations: tuple[str, ...] = ("sigmoid", "relu")
    """The activations of the hidden layers, with three networks for each."""
    hidden: tuple[int, ...] = (50, 50, 50)
    """Units per hidden layer."""
    lowest: float = 1e-3
    """Standard deviation of the initial weights."""
    highest: float = 10.0
    """Standard deviation of the initial weights."""
    scales: int = 9
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
        """Writes `initialisation.json`, `.md` and `.png`."""
        config = options.quick(self, _QUICK)
        check(config)
        running.run("initialisation", self, lambda: measure(config), report.write)
        _kept(config).forget(_runs(config, 1))


def check(config: Initialisation) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    options.check_at_least(config, scales=2, hidden=1, batch_size=1, steps=4)
    options.check_among(config, RATES, "activations")
    grids.check(config)
    recording.check(_plan(config))


def measure(config: Initialisation) -> dict[str, Any]:
    """Trains all networks; returns their accuracies at the end."""
    train, test = datasets.flat_splits(config.dataset, config.data_dir)
    runs = _runs(config, train["image"].shape[1])
    found = recording.train(runs, _plan(config), train, test, _kept(config))
    return {
        "config": options.identity(config),
        "values": output.plain(_scales(config), 6),
        "accuracy": {
            activation: {
                network: grids.accuracies(found[f"{network}_{activation}"])
                for network in report.LABELS
            }
            for activation in config.activations
        },
    }


def _scales(config: Initialisation) -> np.ndarray:
    return np.geomspace(config.lowest, config.highest, config.scales)


def _plan(config: Initialisation) -> recording.Plan:
    return recording.Plan(config.steps, config.steps // 4, config.seeds, config.steps)


def _kept(config: Initialisation) -> recording.Kept:
    return recording.Kept(config.out, "initialisation", options.identity(config))


def _runs(config: Initialisation, pixels: int) -> list[recording.Run]:
    made = []
    for activation in config.activations:
        for network in report.LABELS:
            scales = _scales(config).tolist()
            usual = [config.hidden[-1] ** -0.5] * config.scales
            model = fully_connected.FullyConnected(
                config.hidden,
                activation,
                kernel_init=nn.initializers.normal(1.0),
                **({"norm": None} if network == "without_bn" else {}),
            )
            made.append(
                grids.run(
                    f"{network}_{activation}",
                    model,
                    pixels,
                    config.batch_size,
                    [RATES[activation]] * config.scales,
                    hidden=scales,
                    last=usual if network == "hidden_only" else scales,
                )
            )
    return made
