"""Measures what happens if normalisation is not part of the gradient.

The paper, Section 2: if a layer is normalised outside the gradient step, a bias update
does not change the output, so "b will grow indefinitely while the loss remains fixed.
This problem can get worse if the normalization not only centers but also scales the
activations": "the model blows up".

Expected: with one unit and centring outside, the bias grows at every step by the
learning rate times the mean of the targets, and the loss does not change. With scaling
outside, the scale passes zero, where steps have no bound. In a network biases
grow if normalisation is outside. They do not with Batch Normalization, because the
gradient of a bias before it is zero.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax.numpy as jnp

from experiments.framework import options, output, recording, training_study
from experiments.networks import fully_connected
from experiments.why.outside_gradient import figure, layers, report
from jaxbn import training

_OBSERVED = 1000  # The number of images of the held-out batch.


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutsideGradient(training_study.CurveStudy):
    """Trains networks whose gradient ignores the normalisation (1 minute)."""

    name = "outside_gradient"
    small: ClassVar = {"dataset": "digits", "hidden": (30, 30), "steps": 200}
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    hidden: tuple[int, ...] = (50, 50)
    """The number of units of each hidden layer."""
    learning_rate: float = 0.5
    """The learning rate of plain SGD."""
    batch_size: int = 60
    """The number of examples in a mini-batch."""
    steps: int = 1000
    """The number of mini-batches per network."""

    def check(self) -> None:
        options.check_at_least(self, records=1, hidden=1, batch_size=2)
        options.check_positive(self, "learning_rate")
        super().check()

    def measure(self) -> dict[str, Any]:
        """Trains the unit and the networks; returns curves `[records, seeds]`."""
        train, test = self.splits()
        runs = _runs(self, train["image"].shape[1])
        found = self.train(runs, train, test)
        return {
            "config": self.identity(),
            "steps": self.recorded_steps(),
            "target_mean": 1.0,
            "unit": {
                variant: {
                    name: output.plain(values[:: self.plan().record_every], 6)
                    for name, values in layers.train(
                        variant, self.learning_rate, self.steps
                    ).items()
                }
                for variant in layers.VARIANTS
            },
            "networks": output.plain(found),
        }


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

    return fully_connected.run(
        variant, model, pixels, config.learning_rate, config.batch_size, record
    )
