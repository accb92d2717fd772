"""Compares Batch Normalization with full whitening: cost, noise and training.

The paper, Section 3: whitening each layer's inputs "is costly and not everywhere
differentiable". The covariance matrices would be singular, because a mini-batch is
likely smaller than the number of activations. Normalising each unit by itself "speeds
up convergence, even when the features are not decorrelated".

Expected: whitening takes tens of times longer, and more with more units. With fewer
examples than units it amplifies directions in which the batch has no variance. Its
gradient divides by differences of eigenvalues, and is useless there. With enough
examples it trains as well as BN or better. BN does not change correlations.

Measured: whitening takes 2 times as long as BN at 16 units and 34 times at 256. With
fewer examples than units, other examples get a variance of thousands. With twice as
many examples as units it is 2.1, as theory predicts. In batches of 16, networks with
whitening reach .41, and one seed of three overflows; BN reaches .77 and no
normalisation .72. In batches of 256 whitening is as accurate as BN, and not faster. The
correlation of units is the same after BN as before.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets, options, output, recording, running
from experiments.networks import fully_connected
from experiments.whitening import measures, report, zca
from jaxbn import linen

_QUICK = {"dataset": "digits", "units": (8, 32), "steps": 100}
_OBSERVED = 1000  # The number of images over which correlations are taken.


@dataclasses.dataclass(frozen=True)
class Whitening:
    """Full whitening of a layer beside BN: cost, few examples, training (3 min)."""

    dataset: datasets.Dataset = "fashion_mnist"
    """Digits are embedded."""
    units: tuple[int, ...] = (16, 32, 64, 128, 256)
    """The numbers of units of the layers that are timed, with 256 examples."""
    examples: tuple[int, ...] = (8, 16, 32, 40, 64, 128, 512)
    """The sizes of mini-batches whose statistics normalise others, with 32 units."""
    hidden: tuple[int, ...] = (32, 32)
    """Units of the networks that are trained."""
    batch_sizes: tuple[int, ...] = (16, 256)
    """The batch sizes of training, below and above the number of units."""
    learning_rate: float = 0.1
    """The learning rate of plain SGD."""
    steps: int = 400
    """Mini-batches per network."""
    records: int = 10
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
        """Writes `whitening.json`, `.md` and `.png`."""
        config = options.quick(self, _QUICK)
        check(config)
        running.run("whitening", self, lambda: measure(config), report.write)
        _kept(config).forget(_runs(config, 1))


def check(config: Whitening) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    options.check_at_least(
        config, units=2, examples=4, hidden=1, batch_sizes=2, records=1
    )
    options.check_positive(config, "learning_rate")
    recording.check(_plan(config))


def measure(config: Whitening) -> dict[str, Any]:
    """Measures costs, few examples, correlations in a network, and trainings."""
    train, test = datasets.flat_splits(config.dataset, config.data_dir)
    pixels = train["image"].shape[1]
    runs = _runs(config, pixels)
    found = recording.train(runs, _plan(config), train, test, _kept(config))
    return {
        "config": options.identity(config),
        "steps": recording.recorded_steps(_plan(config)).tolist(),
        "cost": [measures.cost(units, 256) for units in config.units],
        "few": [measures.others(report.UNITS, each) for each in config.examples],
        "correlation": measures.correlations(
            _layer_inputs(config, train["image"][:_OBSERVED])
        ),
        "trained": {
            name: {key: output.plain(values) for key, values in records.items()}
            for name, records in found.items()
        },
    }


def _layer_inputs(config: Whitening, images: np.ndarray) -> np.ndarray:
    """Returns the inputs of the last nonlinearity, `[N, units]`.

    The network has its initial weights and no normalisation.
    """
    model = fully_connected.FullyConnected(config.hidden, "relu", norm=None)
    key, x = jax.random.key(0), jnp.asarray(images)
    (_, inputs), _ = jax.jit(functools.partial(model.init_with_output, train=False))(
        key, x
    )
    return np.asarray(inputs[-1])


def _plan(config: Whitening) -> recording.Plan:
    every = max(1, config.steps // config.records)
    return recording.Plan(config.steps, every, config.seeds, config.steps)


def _kept(config: Whitening) -> recording.Kept:
    identity = options.identity(config)
    for name in ("units", "examples"):  # They do not change the trainings.
        del identity[name]
    return recording.Kept(config.out, "whitening", identity)


def _runs(config: Whitening, pixels: int) -> list[recording.Run]:
    return [
        _run(config, norm, size, pixels)
        for size in config.batch_sizes
        for norm in report.NETWORKS
    ]


def _run(config: Whitening, norm: str, batch_size: int, pixels: int) -> recording.Run:
    norms = {
        "BN": functools.partial(linen.BatchNorm, momentum=0.9),
        "whitening": zca.Whitening,
        "none": None,
    }
    model = fully_connected.FullyConnected(config.hidden, "relu", norms[norm])
    return recording.Run(
        f"{norm}, {batch_size}",
        lambda key: fully_connected.init_state(
            model, pixels, key, config.learning_rate
        ),
        recording.gradient_step(fully_connected.loss_fn),
        fully_connected.evaluate,
        batch_size,
    )
