"""Measures over which learning rates and initial weights a network trains.

The paper, Sections 1, 3.3 and 4.2.2: Batch Normalization "enables higher learning
rates", "prevents small changes in layer parameters from amplifying", and "allows the
use of saturating nonlinearities". Without it, a rate of 5 times the usual made the
parameters of Inception "reach machine infinity". It also "allows us to [...] be less
careful about initialization", and back-propagation through a layer "is unaffected by
the scale of its parameters".

Expected: with BN a network trains at rates that are several times higher, without
diverging, for every nonlinearity. It also trains at low rates, where the sigmoid
network without BN does not leave its plateau. With BN the hidden layers train from
initial weights over several decades, and without it from one scale. With BN they do not
train from all scales, for three reasons. The softmax layer is not normalised, epsilon
outweighs a tiny variance, and small steps change large weights slowly. A third network
starts its softmax layer with the usual scale.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np

from experiments.framework import options, output, training_study
from experiments.networks import fully_connected
from experiments.practice.sensitivity import figure, grids, report

# The learning rates of plain SGD for all networks that start from different weights.
# The network without BN does well with them.
RATES = {"sigmoid": 1.0, "tanh": 0.1, "relu": 0.1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid(training_study.TrainingStudy):
    """Networks that are trained at all values of one quantity, side by side."""

    small: ClassVar = {"dataset": "digits", "hidden": (30, 30, 30), "steps": 200}
    points: ClassVar[str]
    """The name of the option with the number of values."""
    labels: ClassVar[Mapping[str, str]]
    """The networks, and their names in tables."""

    hidden: tuple[int, ...] = (50, 50, 50)
    """The number of units of each hidden layer."""
    batch_size: int = 60
    """The number of examples in a mini-batch."""
    steps: int = 600
    """The number of mini-batches per network; it must be a multiple of 4."""

    def interval(self) -> int:
        return self.steps // 4

    def check(self) -> None:
        options.check_at_least(self, hidden=1, batch_size=1, steps=4)
        options.check_at_least(self, **{self.points: 2})
        options.check_among(self, RATES, "activations")
        options.check_positive(self, "lowest", "highest")
        if self.lowest >= self.highest:
            raise ValueError(
                f"`lowest` must be below `highest`, {self.highest}, got {self.lowest}."
            )
        super().check()

    def measure(self) -> dict[str, Any]:
        """Trains all networks; returns their accuracies at the end."""
        train, test = self.splits()
        pixels = train["image"].shape[1]
        runs = [
            grids.run(
                f"{network}_{activation}",
                self.model(network, activation),
                pixels,
                self.batch_size,
                *self.settings(network, activation),
            )
            for activation in self.activations
            for network in self.labels
        ]
        found = self.train(runs, train, test)
        return {
            "config": self.identity(),
            "values": output.plain(self.values(), 6),
            "accuracy": {
                activation: {
                    network: grids.accuracies(found[f"{network}_{activation}"])
                    for network in self.labels
                }
                for activation in self.activations
            },
        }

    def values(self) -> np.ndarray:
        """Returns the values, from the lowest to the highest."""
        return np.geomspace(self.lowest, self.highest, getattr(self, self.points))

    def model(self, network: str, activation: str) -> fully_connected.FullyConnected:
        """Returns a network with or without BN."""
        norm = {"norm": None} if network == "without_bn" else {}
        return fully_connected.FullyConnected(self.hidden, activation, **norm)

    def settings(self, network: str, activation: str) -> Sequence[Sequence[float]]:
        """Returns learning rate and factors of the weights of a network at each value.

        The factors are those of the hidden layers, and of the layer before the softmax.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningRate(Grid):
    """Trains at learning rates over four decades (2 minutes)."""

    name = "learning_rate"
    points = "rates"
    labels = report.LEARNING_RATE
    report = staticmethod(report.learning_rate)
    draw = staticmethod(figure.learning_rate)

    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu")
    """The activations of the hidden layers, with a pair of networks for each."""
    lowest: float = 10**-2.5
    """The lowest learning rate of plain SGD."""
    highest: float = 10**1.5
    """The highest learning rate of plain SGD."""
    rates: int = 9
    """The number of learning rates, evenly spaced in their logarithm."""

    def settings(self, network: str, activation: str) -> Sequence[Sequence[float]]:
        usual = [1.0] * self.rates
        return self.values().tolist(), usual, usual


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initialisation(Grid):
    """Trains from initial weights over four decades of scales (2 minutes)."""

    name = "initialisation"
    points = "scales"
    labels = report.INITIALISATION
    report = staticmethod(report.initialisation)
    draw = staticmethod(figure.initialisation)

    activations: tuple[str, ...] = ("sigmoid", "relu")
    """The activations of the hidden layers, with three networks for each."""
    lowest: float = 1e-3
    """The lowest standard deviation of the initial weights."""
    highest: float = 10.0
    """The highest standard deviation of the initial weights."""
    scales: int = 9
    """The number of standard deviations, evenly spaced in their logarithm."""

    def model(self, network: str, activation: str) -> fully_connected.FullyConnected:
        model = super().model(network, activation)
        return model.clone(kernel_init=nn.initializers.normal(1.0))

    def settings(self, network: str, activation: str) -> Sequence[Sequence[float]]:
        scales = self.values().tolist()
        usual = [self.hidden[-1] ** -0.5] * self.scales
        last = usual if network == "hidden_only" else scales
        return [RATES[activation]] * self.scales, scales, last
