"""Tests the consequences of BN((aW)u) = BN(Wu) for weights, gradients and Jacobians.

The paper, Section 3.3: the scale of the weights changes neither the output of a layer
nor the gradient with respect to its input. It divides the gradient with respect to the
weights: "larger weights lead to smaller gradients, and Batch Normalization will
stabilize the parameter growth". And "we conjecture" that layer Jacobians have singular
values close to 1.

Expected: the identities hold to the rounding of float32 if epsilon is 0, and to
epsilon / (a^2 var) if it is not. The gradient is orthogonal to the weights, so |W|^2
grows by the square of every step only. Networks that start with different scales of
weights reach the same effective learning rate. Singular values are near 1 at most in
the mean, because those of a Gaussian matrix spread from 0 to 2.

Measured: the identities hold to 2e-7 for factors from 1e-3 to 1e3, and to 6e-4 at a
factor of .1 with epsilon 1e-5. With BN, |W|^2 is the sum of squared steps to 1e-3.
Differences of the effective learning rate shrink from 256-fold to 33-fold in 1,500
steps, at equal accuracy. Singular values are not near 1: at most 60 % lie within .5 to
2. They are nearer than without BN, where those of the sigmoid network have a root mean
square of .24.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments import datasets, options, output, recording, running
from experiments.scale_invariance import layer, report, training_norms

_QUICK = {
    "dataset": "digits",
    "hidden": (30, 30, 30),
    "steps": 200,
    "records": 10,
}


@dataclasses.dataclass(frozen=True)
class ScaleInvariance:
    """Consequences of BN((aW)u) = BN(Wu): gradients, |W|, Jacobians (3 min)."""

    dataset: datasets.Dataset = "fashion_mnist"
    """Digits are embedded."""
    activations: tuple[str, ...] = ("sigmoid", "relu")
    """The activations of the hidden layers, with a pair of networks for each."""
    hidden: tuple[int, ...] = (100, 100, 100)
    """Units per hidden layer."""
    scales: tuple[float, ...] = (0.25, 1.0, 4.0)
    """Factors of the customary initial hidden weights."""
    learning_rate: float = 0.5
    """The learning rate of plain SGD."""
    batch_size: int = 60
    """Examples per mini-batch."""
    steps: int = 1500
    """Mini-batches per network."""
    records: int = 15
    """Points of the curves; `steps` must be a multiple of it."""
    seeds: int = 3
    """Side by side."""
    quick: bool = False
    """On the embedded digits, in a minute."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `scale_invariance.json`, `.md` and `.png`."""
        config = options.quick(self, _QUICK)
        check(config)
        running.run("scale_invariance", self, lambda: measure(config), report.write)
        _kept(config).forget(_runs(config, 1))


def check(config: ScaleInvariance) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    options.check_at_least(config, records=1, hidden=1, batch_size=1)
    options.check_positive(config, "learning_rate")
    if len(config.hidden) < 2:
        raise ValueError(
            "`hidden` must have two layers or more, between which there is a "
            f"Jacobian, got {config.hidden}."
        )
    recording.check(_plan(config))


def measure(config: ScaleInvariance) -> dict[str, Any]:
    """Measures the identities of one layer and runs the trainings."""
    train, test = datasets.flat_splits(config.dataset, config.data_dir)
    found = recording.train(
        _runs(config, train["image"].shape[1]),
        _plan(config),
        train,
        test,
        _kept(config),
    )
    return {
        "config": options.identity(config),
        "steps": recording.recorded_steps(_plan(config)).tolist(),
        "layer": [
            {
                "factor": factor,
                "epsilon": epsilon,
                "errors": output.plain(_as_array(layer.errors(factor, epsilon)), 2),
            }
            for epsilon in (0.0, 1e-5)
            for factor in layer.FACTORS
        ],
        "runs": {name: _summary(records) for name, records in found.items()},
    }


def _summary(records: recording.Records) -> dict[str, Any]:
    """Returns curves of all seeds, `[records, seeds, scales, layers]`.

    Accuracy, angle and singular values are those of the last record.
    """
    last = {name: values[-1] for name, values in records.items()}
    return {
        "accuracy": output.plain(last["accuracy"]),
        "norm": output.plain(records["norm"]),
        "predicted": output.plain(records["predicted"]),
        "angle": output.plain(last["angle"], 2),
        # The mean is over seeds; every scale is kept.
        "singular": output.plain(last["singular"].mean(0)),
    }


def _as_array(errors: dict[str, float]) -> np.ndarray:
    return np.array([errors[name] for name in layer.QUANTITIES])


def _plan(config: ScaleInvariance) -> recording.Plan:
    every = max(1, config.steps // max(1, config.records))
    return recording.Plan(config.steps, every, config.seeds, config.steps)


def _kept(config: ScaleInvariance) -> recording.Kept:
    return recording.Kept(config.out, "scale_invariance", options.identity(config))


def _runs(config: ScaleInvariance, pixels: int) -> list[recording.Run]:
    return [
        training_norms.run(
            network,
            activation,
            config.hidden,
            pixels,
            config.learning_rate,
            config.scales,
            config.batch_size,
        )
        for activation in config.activations
        for network in training_norms.NETWORKS
    ]
