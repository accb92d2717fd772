"""Measures which units are saturated, and the gradient that reaches the first layer.

The paper, Sections 1 and 3.3: changes of the parameters below "move many dimensions of
x into the saturated regime of the nonlinearity and slow down the convergence. This
effect is amplified as the network depth increases". Batch Normalization "prevents the
network from getting stuck in the saturated modes".

Expected: without BN, large initial weights saturate sigmoids, and with usual ones the
gradient vanishes on its way down. With BN neither happens. About half of the ReLUs of a
layer are active with BN, and none is dead at the start.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from experiments.framework import options, output, recording, training_study
from experiments.networks import fully_connected
from experiments.why.saturation import figure, layers, report
from jaxbn import training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saturation(training_study.CurveStudy):
    """Records saturated units and vanishing gradients by layer (2 minutes)."""

    name = "saturation"
    small: ClassVar = {"dataset": "digits", "hidden": (30,) * 5, "steps": 200}
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    activations: tuple[str, ...] = ("sigmoid", "relu")
    """The activations of the hidden layers, with a pair of networks for each."""
    hidden: tuple[int, ...] = (50,) * 5
    """The number of units of each hidden layer."""
    scales: tuple[float, ...] = (1.0, 8.0)
    """The factors of the customary initial hidden weights, from small to large."""
    learning_rate: float = 0.3
    """The learning rate of plain SGD."""
    batch_size: int = 60
    """The number of examples in a mini-batch."""
    steps: int = 1000
    """The number of mini-batches per network."""

    def check(self) -> None:
        options.check_at_least(self, records=1, hidden=1, batch_size=1)
        options.check_positive(self, "learning_rate")
        options.check_among(self, ("sigmoid", "relu"), "activations")
        super().check()

    def measure(self) -> dict[str, Any]:
        """Trains all networks; returns curves `[records, seeds, scales, layers]`."""
        train, test = self.splits()
        runs = _runs(self, train["image"].shape[1])
        found = self.train(runs, train, test)
        return {
            "config": self.identity(),
            "steps": self.recorded_steps(),
            "runs": {
                run: {
                    name: output.plain(values[-1] if name == "accuracy" else values, 3)
                    for name, values in records.items()
                }
                for run, records in found.items()
            },
        }


def _runs(config: Saturation, pixels: int) -> list[recording.Run]:
    return [
        _run(config, network, activation, pixels)
        for activation in config.activations
        for network in report.NETWORKS
    ]


def _run(
    config: Saturation, network: str, activation: str, pixels: int
) -> recording.Run:
    without = {} if network == "with_bn" else {"norm": None}
    model = fully_connected.FullyConnected(config.hidden, activation, **without)

    def init(key: jax.Array, scale: jax.Array) -> training.TrainState:
        state = fully_connected.init_state(model, pixels, key, config.learning_rate)
        return fully_connected.scaled(state, scale, 1.0)

    def record(state: training.TrainState, held_out: recording.Batch):
        found = fully_connected.evaluate(state, held_out)
        measured = layers.measure(model, state, held_out)
        measured["accuracy"] = found["accuracy"]
        return {
            name: jnp.where(found["finite"], value, jnp.nan)
            for name, value in measured.items()
        }

    single = recording.Run(
        f"{network}_{activation}",
        init,
        recording.gradient_step(fully_connected.loss_fn),
        record,
        config.batch_size,
    )
    return recording.side_by_side(single, jnp.asarray(config.scales, jnp.float32))
