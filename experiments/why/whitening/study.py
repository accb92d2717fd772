"""Compares Batch Normalization with full whitening: cost, noise and training.

The paper, Section 3: whitening each layer's inputs "is costly and not everywhere
differentiable". The covariance matrices would be singular, because a mini-batch is
likely smaller than the number of activations. Normalising each unit by itself "speeds
up convergence, even when the features are not decorrelated".

Expected: whitening takes tens of times longer, and more with more units. With fewer
examples than units it amplifies directions in which the batch has no variance. Its
gradient divides by differences of eigenvalues, and is useless there. With enough
examples it trains as well as BN or better. BN does not change correlations.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.framework import options, output, recording, training_study
from experiments.networks import fully_connected
from experiments.why.whitening import figure, measures, report, zca
from jaxbn import linen

_OBSERVED = 1000  # The number of images over which correlations are taken.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whitening(training_study.CurveStudy):
    """Compares full whitening of a layer with BN (2 minutes)."""

    name = "whitening"
    not_in_training = ("units", "examples")
    small: ClassVar = {"dataset": "digits", "units": (8, 32), "steps": 100}
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    units: tuple[int, ...] = (16, 32, 64, 128, 256)
    """The numbers of units of the layers that are timed, with 256 examples."""
    examples: tuple[int, ...] = (8, 16, 32, 40, 64, 128, 512)
    """The sizes of mini-batches whose statistics normalise others, with 32 units."""
    hidden: tuple[int, ...] = (32, 32)
    """The number of units of each hidden layer."""
    batch_sizes: tuple[int, ...] = (16, 256)
    """The batch sizes of training, below and above the number of units."""
    learning_rate: float = 0.1
    """The learning rate of plain SGD."""
    steps: int = 400
    """The number of mini-batches per network."""
    records: int = 10
    """The number of points of the curves; `steps` must be a multiple of it."""

    def check(self) -> None:
        options.check_at_least(
            self, units=2, examples=4, hidden=1, batch_sizes=2, records=1
        )
        options.check_positive(self, "learning_rate")
        super().check()

    def measure(self) -> dict[str, Any]:
        """Measures costs, few examples, correlations in a network, and trainings."""
        train, test = self.splits()
        pixels = train["image"].shape[1]
        runs = _runs(self, pixels)
        found = self.train(runs, train, test)
        return {
            "config": self.identity(),
            "steps": self.recorded_steps(),
            "cost": [measures.cost(units, 256) for units in self.units],
            "few": [measures.others(report.UNITS, each) for each in self.examples],
            "correlation": measures.correlations(
                _layer_inputs(self, train["image"][:_OBSERVED])
            ),
            "trained": output.plain(found),
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
    return fully_connected.run(
        f"{norm}, {batch_size}", model, pixels, config.learning_rate, batch_size
    )
