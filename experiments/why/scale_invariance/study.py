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
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from experiments.framework import options, output, recording, training_study
from experiments.why.scale_invariance import figure, layer, report, training_norms


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleInvariance(training_study.CurveStudy):
    """Tests the consequences of BN((aW)u) = BN(Wu) (3 minutes)."""

    name = "scale_invariance"
    small: ClassVar = {
        "dataset": "digits",
        "hidden": (30, 30, 30),
        "steps": 200,
        "records": 10,
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    activations: tuple[str, ...] = ("sigmoid", "relu")
    """The activations of the hidden layers, with a pair of networks for each."""
    hidden: tuple[int, ...] = (100, 100, 100)
    """The number of units of each hidden layer."""
    scales: tuple[float, ...] = (0.25, 1.0, 4.0)
    """The factors of the customary initial hidden weights."""
    learning_rate: float = 0.5
    """The learning rate of plain SGD."""
    batch_size: int = 60
    """The number of examples in a mini-batch."""
    steps: int = 1500
    """The number of mini-batches per network."""
    records: int = 15
    """The number of points of the curves; `steps` must be a multiple of it."""

    def check(self) -> None:
        options.check_at_least(self, records=1, hidden=1, batch_size=1)
        options.check_positive(self, "learning_rate")
        if len(self.hidden) < 2:
            raise ValueError(
                "`hidden` must have two layers or more, between which there is a "
                f"Jacobian, got {self.hidden}."
            )
        super().check()

    def measure(self) -> dict[str, Any]:
        """Measures the identities of one layer and runs the trainings."""
        train, test = self.splits()
        found = self.train(_runs(self, train["image"].shape[1]), train, test)
        return {
            "config": self.identity(),
            "steps": self.recorded_steps(),
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
