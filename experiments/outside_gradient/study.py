"""Measures what happens if normalisation is not part of the gradient.

The paper, Section 2: if a layer is normalised outside the gradient step, a bias update
does not change the output, so "b will grow indefinitely while the loss remains fixed.
This problem can get worse if the normalization not only centers but also scales the
activations": "the model blows up".

Expected: with one unit and centring outside, the bias grows at every step by the
learning rate times the mean of the targets, and the loss does not change. With scaling
outside, the scale moves through zero, where steps have no bound. In a network biases
grow if normalisation is outside. They do not with Batch Normalization, because the
gradient of a bias before it is zero.

Measured: one unit's bias grows to 500 in 1,000 steps, as expected, at a fixed loss.
With scaling outside too, one step through a scale of zero moves bias and scale to 100.
There the gradient, which is divided by the deviation, almost vanishes. In a network
with centring outside, all seeds overflow within 100 steps. With scaling outside too,
biases grow to the end and no seed overflows; accuracy is .11 lower than with BN, whose
biases stay at 0.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax.numpy as jnp

from experiments import datasets, options, output, recording, running
from experiments.networks import fully_connected
from experiments.outside_gradient import example, layers, report
from jaxbn import training

_QUICK = {"dataset": "digits", "hidden": (30, 30), "steps": 200}
_OBSERVED = 1000  # The number of images of the held-out batch.


@dataclasses.dataclass(frozen=True)
class OutsideGradient:
    """Normalisation that the gradient does not see, beside BN (a minute)."""

    dataset: datasets.Dataset = "fashion_mnist"
    """Digits are embedded."""
    hidden: tuple[int, ...] = (50, 50)
    """Units per hidden layer, ReLU."""
    learning_rate: float = 0.5
    """The learning rate of plain SGD."""
    batch_size: int = 60
    """Examples per mini-batch."""
    steps: int = 1000
    """Mini-batches per network, and steps of the single unit."""
    records: int = 20
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
        """Writes `outside_gradient.json`, `.md` and `.png`."""
        config = options.quick(self, _QUICK)
        check(config)
        running.run("outside_gradient", self, lambda: measure(config), report.write)
        _kept(config).forget(_runs(config, 1))


def check(config: OutsideGradient) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    options.check_at_least(config, records=1, hidden=1, batch_size=2)
    options.check_positive(config, "learning_rate")
    recording.check(_plan(config))


def measure(config: OutsideGradient) -> dict[str, Any]:
    """Trains the single unit and the networks; returns curves `[records, seeds]`."""
    train, test = datasets.flat_splits(config.dataset, config.data_dir)
    runs = _runs(config, train["image"].shape[1])
    found = recording.train(runs, _plan(config), train, test, _kept(config))
    return {
        "config": options.identity(config),
        "steps": recording.recorded_steps(_plan(config)).tolist(),
        "target_mean": 1.0,
        "unit": {
            variant: {
                name: output.plain(values[:: _plan(config).record_every], 6)
                for name, values in example.train(
                    variant, config.learning_rate, config.steps
                ).items()
            }
            for variant in layers.VARIANTS
        },
        "networks": {
            variant: {name: output.plain(values) for name, values in records.items()}
            for variant, records in found.items()
        },
    }


def _plan(config: OutsideGradient) -> recording.Plan:
    every = max(1, config.steps // config.records)
    return recording.Plan(config.steps, every, config.seeds, config.steps)


def _kept(config: OutsideGradient) -> recording.Kept:
    return recording.Kept(config.out, "outside_gradient", options.identity(config))


def _runs(config: OutsideGradient, pixels: int) -> list[recording.Run]:
    return [_run(config, variant, pixels) for variant in layers.VARIANTS]


def _run(config: OutsideGradient, variant: str, pixels: int) -> recording.Run:
    norm = functools.partial(layers.Normalisation, variant)
    model = fully_connected.FullyConnected(config.hidden, "relu", norm)

    def record(state: training.TrainState, held_out: recording.Batch):
        some = {name: values[:_OBSERVED] for name, values in held_out.items()}
        found = fully_connected.evaluate(state, some)
        biases = [
            state.params[name]["bias"]
            for name in state.params
            if name.startswith("Normalisation_")
        ]
        size = jnp.sqrt(sum(jnp.sum(jnp.square(bias)) for bias in biases))
        return {**found, "bias": size}

    return recording.Run(
        variant,
        lambda key: fully_connected.init_state(
            model, pixels, key, config.learning_rate
        ),
        recording.gradient_step(fully_connected.loss_fn),
        record,
        config.batch_size,
    )
