"""Measures which units are saturated, and the gradient that reaches the first layer.

The paper, Sections 1 and 3.3: changes of the parameters below "move many dimensions of
x into the saturated regime of the nonlinearity and slow down the convergence. This
effect is amplified as the network depth increases". Batch Normalization "prevents the
network from getting stuck in the saturated modes".

Expected: without BN, large initial weights saturate sigmoids, and with usual ones the
gradient vanishes on its way down. With BN neither happens. About half of the ReLUs of a
layer are active with BN, and none is dead at the start.

Measured: as expected. Without BN, large initial weights saturate half of the sigmoids,
and with usual ones .005 of the last layer's gradient reaches the first of five layers.
With BN at most 5 % are saturated, and the gradient grows on its way down. 41 % of the
ReLUs of the first layer are dead without BN, and none with it.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments import datasets, options, output, recording, running
from experiments.networks import fully_connected
from experiments.saturation import layers, report
from jaxbn import training

_QUICK = {"dataset": "digits", "hidden": (30,) * 5, "steps": 200}


@dataclasses.dataclass(frozen=True)
class Saturation:
    """Saturated units and vanishing gradients by layer and step (2 min)."""

    dataset: datasets.Dataset = "fashion_mnist"
    """Digits are embedded."""
    activations: tuple[str, ...] = ("sigmoid", "relu")
    """The activations of the hidden layers, with a pair of networks for each."""
    hidden: tuple[int, ...] = (50,) * 5
    """Units per hidden layer."""
    scales: tuple[float, ...] = (1.0, 8.0)
    """Factors of the customary initial hidden weights, from small to large."""
    learning_rate: float = 0.3
    """The learning rate of plain SGD."""
    batch_size: int = 60
    """Examples per mini-batch."""
    steps: int = 1000
    """Mini-batches per network."""
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
        """Writes `saturation.json`, `.md` and `.png`."""
        config = options.quick(self, _QUICK)
        check(config)
        running.run("saturation", self, lambda: measure(config), report.write)
        _kept(config).forget(_runs(config, 1))


def check(config: Saturation) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    options.check_at_least(config, records=1, hidden=1, batch_size=1)
    options.check_positive(config, "learning_rate")
    options.check_among(config, ("sigmoid", "relu"), "activations")
    recording.check(_plan(config))


def measure(config: Saturation) -> dict[str, Any]:
    """Trains all networks; returns curves `[records, seeds, scales, layers]`."""
    train, test = datasets.flat_splits(config.dataset, config.data_dir)
    runs = _runs(config, train["image"].shape[1])
    found = recording.train(runs, _plan(config), train, test, _kept(config))
    return {
        "config": options.identity(config),
        "steps": recording.recorded_steps(_plan(config)).tolist(),
        "runs": {
            run: {
                name: output.plain(values[-1] if name == "accuracy" else values, 3)
                for name, values in records.items()
            }
            for run, records in found.items()
        },
    }


def _plan(config: Saturation) -> recording.Plan:
    every = max(1, config.steps // config.records)
    return recording.Plan(config.steps, every, config.seeds, config.steps)


def _kept(config: Saturation) -> recording.Kept:
    return recording.Kept(config.out, "saturation", options.identity(config))


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
