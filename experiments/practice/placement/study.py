"""Compares places of Batch Normalization in a network.

The paper puts it immediately before the nonlinearity (Section 3.2), because its input
"is more likely to have a symmetric, non-sparse distribution, that is more Gaussian". In
a convolution it has one mean and variance per feature map, so that the normalisation
"obeys the convolutional property". In a residual block (He et al., 2015) it is on the
branch, before the sum with the shortcut.

Fully connected networks with sigmoid, tanh and relu have BN before the nonlinearity,
after it, or nowhere. A small residual network has it before the sum, after it, and per
activation instead of per channel. Expected: before the nonlinearity is at least as good
as after it, and clearly better for the sigmoid. Both are better than no BN. Before the
sum and per channel are best in the residual network.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from experiments.data import datasets
from experiments.framework import options, output, recording, training_study
from experiments.networks import fully_connected, residual
from experiments.practice.placement import figure, report
from jaxbn import linen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement(training_study.TrainingStudy):
    """Compares places of BN around nonlinearities and shortcuts (5 minutes)."""

    name = "placement"
    small: ClassVar = {
        "dataset": "digits",
        "steps": 200,
        "residual_steps": 40,
        "record_every": 20,
        "hidden": (50, 50),
        "channels": 8,
        "activations": ("sigmoid",),
        "seeds": 2,
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    steps: int = 1000
    """The number of mini-batches per fully connected network."""
    residual_steps: int = 200
    """The number of mini-batches per residual network, whose images are half as
    large."""
    record_every: int = 50
    """The number of steps between two records."""
    batch_size: int = 64
    """The number of examples in a mini-batch."""
    learning_rate: float = 0.1
    """The learning rate of plain SGD."""
    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu")
    """The nonlinearities of the fully connected networks."""
    hidden: tuple[int, ...] = (100, 100, 100)
    """The number of units of each hidden layer."""
    channels: int = 16
    """The number of channels of the residual network."""
    tested: int = 2000
    """The number of test images, from the start of the test split."""

    def check(self) -> None:
        for part in _parts(self, (1, 1, 1)):
            recording.check(part.plan)
        options.check_at_least(self, batch_size=2, hidden=1, channels=1, tested=1)
        options.check_positive(self, "learning_rate")
        options.check_among(self, fully_connected.KERNEL_INITS, "activations")

    def measure(self) -> dict[str, Any]:
        """Trains all networks; returns accuracies by part and network.

        There is an accuracy for every record and seed.
        """
        train_split, test = (
            datasets.scaled(self.dataset, name, self.data_dir)
            for name in ("train", "test")
        )
        test = datasets.first(test, self.tested)
        parts = {}
        for part in _parts(self, test["image"].shape[1:]):
            flat = part.name == "fully connected"
            found = self.train(
                part.runs,
                _flat(train_split) if flat else datasets.halved(train_split),
                _flat(test) if flat else datasets.halved(test),
                plan=part.plan,
                workers=2,
            )
            parts[part.name] = {
                "step": recording.recorded_steps(part.plan).tolist(),
                "accuracy": {
                    name: output.plain(records["accuracy"])
                    for name, records in found.items()
                },
            }
        return {"options": self.identity(), "parts": parts}


@dataclasses.dataclass(frozen=True)
class Part:
    """The networks that are trained on images of one shape."""

    name: str
    runs: list[recording.Run]
    plan: recording.Plan


def _parts(config: Placement, shape: tuple[int, ...]) -> list[Part]:
    every, seeds = config.record_every, config.seeds
    rate_and_size = config.learning_rate, config.batch_size
    places = {
        "before": (linen.BatchNorm, False),
        "after": (linen.BatchNorm, True),
        "none": (None, False),
    }
    connected = [
        fully_connected.run(
            f"{activation}, {place}",
            fully_connected.FullyConnected(
                config.hidden, activation, norm, norm_after=after
            ),
            (int(np.prod(shape)),),
            *rate_and_size,
        )
        for activation in config.activations
        for place, (norm, after) in places.items()
    ]
    per_channel = functools.partial(linen.BatchNorm, momentum=0.9)
    per_activation = functools.partial(per_channel, axis=(1, 2, 3))
    kinds: dict[str, tuple[residual.Place, Any]] = {
        "before the sum, per channel": ("before the sum", per_channel),
        "after the sum, per channel": ("after the sum", per_channel),
        "before the sum, per activation": ("before the sum", per_activation),
    }
    half = datasets.halved({"image": np.zeros((1, *shape))})["image"].shape[1:]
    with_skips = [
        fully_connected.run(
            name,
            residual.Residual(config.channels, place=place, norm=norm),
            half,
            *rate_and_size,
            convolves=True,
        )
        for name, (place, norm) in kinds.items()
    ]
    return [
        Part(
            "fully connected",
            connected,
            recording.Plan(config.steps, every, seeds, every),
        ),
        Part(
            "residual",
            with_skips,
            recording.Plan(config.residual_steps, every, seeds, every),
        ),
    ]


def _flat(split: recording.Batch) -> recording.Batch:
    images = split["image"]
    return {**split, "image": images.reshape(len(images), -1)}
