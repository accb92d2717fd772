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

Measured: holds partly. With sigmoids BN before them learns faster and ends .011 lower
than BN after them. With tanh all three are equal. With ReLU both places are equal, and
.007 to .010 above no BN. In the residual network the usual place is better at first,
and within the spread of the seeds at the end, after 200 steps.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from experiments import datasets, options, output, recording, running
from experiments.networks import fully_connected, residual
from experiments.placement import report
from jaxbn import linen, training

QUICK = {
    "dataset": "digits",
    "steps": 200,
    "residual_steps": 40,
    "record_every": 20,
    "hidden": (50, 50),
    "channels": 8,
    "activations": ("sigmoid",),
    "seeds": 2,
}


@dataclasses.dataclass(frozen=True)
class Placement:
    """BN before or after nonlinearity and shortcut, per channel or not (five min)."""

    dataset: datasets.Dataset = "fashion_mnist"
    """The data set to train on."""
    steps: int = 1000
    """Mini-batches per fully connected network."""
    residual_steps: int = 200
    """Mini-batches per residual network, whose images are half as large."""
    record_every: int = 50
    """Steps between two records."""
    batch_size: int = 64
    """Examples per mini-batch."""
    learning_rate: float = 0.1
    """The learning rate of plain SGD, for all networks."""
    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu")
    """Nonlinearities of the fully connected networks."""
    hidden: tuple[int, ...] = (100, 100, 100)
    """Units per hidden layer."""
    channels: int = 16
    """The number of channels of the residual network."""
    tested: int = 2000
    """Test images, taken from the beginning."""
    seeds: int = 3
    """Trainings side by side, each with its own initial weights and mini-batches."""
    quick: bool = False
    """On the embedded digits, in a minute."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `placement.json`, `.md` and `.png`."""
        config = options.quick(self, QUICK)
        check(config)
        running.run("placement", self, lambda: measure(config), report.write)
        for part in _parts(config, (1, 1, 1)):
            _kept(config).forget(part.runs)


def check(config: Placement) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    for part in _parts(config, (1, 1, 1)):
        recording.check(part.plan)
    options.check_at_least(config, batch_size=2, hidden=1, channels=1, tested=1)
    options.check_positive(config, "learning_rate")
    options.check_among(config, fully_connected.KERNEL_INITS, "activations")


@dataclasses.dataclass(frozen=True)
class Part:
    """The networks that are trained on images of one shape."""

    name: str
    runs: list[recording.Run]
    plan: recording.Plan


def measure(config: Placement) -> dict[str, Any]:
    """Trains all networks; returns accuracies by part and network.

    There is an accuracy for every record and seed.
    """
    train_split, test = (_images(config, name) for name in ("train", "test"))
    test = {name: each[: config.tested] for name, each in test.items()}
    parts = {}
    for part in _parts(config, test["image"].shape[1:]):
        flat = part.name == "fully connected"
        found = recording.train(
            part.runs,
            part.plan,
            _flat(train_split) if flat else datasets.halved(train_split),
            _flat(test) if flat else datasets.halved(test),
            _kept(config),
            workers=2,
        )
        parts[part.name] = {
            "step": recording.recorded_steps(part.plan).tolist(),
            "accuracy": {
                name: output.plain(records["accuracy"])
                for name, records in found.items()
            },
        }
    return {"options": options.identity(config), "parts": parts}


def _parts(config: Placement, shape: tuple[int, ...]) -> list[Part]:
    every, seeds = config.record_every, config.seeds
    places = {
        "before": (linen.BatchNorm, False),
        "after": (linen.BatchNorm, True),
        "none": (None, False),
    }
    connected = [
        _run(
            config,
            f"{activation}, {place}",
            fully_connected.FullyConnected(
                config.hidden, activation, norm, norm_after=after
            ),
            (int(np.prod(shape)),),
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
        _run(
            config,
            name,
            residual.Residual(config.channels, place=place, norm=norm),
            half,
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


def _run(
    config: Placement,
    name: str,
    model: Any,
    shape: tuple[int, ...],
    convolves: bool = False,
) -> recording.Run:

    def init(key: jax.Array) -> training.TrainState:
        return fully_connected.init_state(model, shape, key, config.learning_rate)

    return recording.Run(
        name=name,
        init=init,
        step=recording.gradient_step(fully_connected.loss_fn),
        record=fully_connected.evaluate,
        batch_size=config.batch_size,
        convolves=convolves,
    )


def _images(config: Placement, name: Any) -> dict[str, np.ndarray]:
    images, labels = datasets.load(config.dataset, name, config.data_dir)
    return {"image": images.astype(np.float32) / 255, "label": labels}


def _flat(split: recording.Batch) -> recording.Batch:
    images = split["image"]
    return {**split, "image": images.reshape(len(images), -1)}


def _kept(config: Placement) -> recording.Kept:
    return recording.Kept(config.out, "placement", options.identity(config))
