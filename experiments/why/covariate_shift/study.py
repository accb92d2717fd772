"""Measures internal covariate shift with BN, and whether less of it is why BN helps.

The paper (Sections 2, 4.1 and Figure 1): BN "reduces internal covariate shift", and the
distribution of the inputs of a sigmoid "is much more stable as training progresses".
Santurkar et al. (2018) measure the shift by gradients: how much the gradient of a layer
changes because the layers before it move. By that measure BN does not reduce the shift.
They also add noise after BN that changes the distributions in every step, and the
network trains as well as without the noise. Instead, they say, BN makes the loss
smoother, and gradients more predictive of those a step away.

Four networks are trained in the same way: without normalisation, with BN, with BN and
that noise, and with the noise alone. Every record has percentiles of the inputs of all
nonlinearities, the shift by gradients, and loss and gradient after steps of several
lengths.
Expected: with BN the percentiles move less, the shift by gradients is not smaller, the
loss is smoother, and noise costs little.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import datasets
from experiments.framework import options, output, recording, training_study
from experiments.networks import fully_connected, norms
from experiments.why.covariate_shift import figure, measures, noise, report
from jaxbn import linen, training

PERCENTILES = (15.0, 50.0, 85.0)  # The paper's Figure 1 has these percentiles.


@dataclasses.dataclass(frozen=True, kw_only=True)
class CovariateShift(training_study.TrainingStudy):
    """Measures internal covariate shift, and trains with noisy BN (5 minutes)."""

    name = "covariate_shift"
    small: ClassVar = {
        "dataset": "digits",
        "steps": 300,
        "record_every": 30,
        "hidden": (50, 50, 50),
        "seeds": 2,
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    steps: int = 1000
    """The number of mini-batches per network."""
    record_every: int = 50
    """The number of steps between two records."""
    batch_size: int = 64
    """The number of examples in a mini-batch."""
    learning_rate: float = 0.1
    """The learning rate of plain SGD."""
    hidden: tuple[int, ...] = (100, 100, 100, 100, 100)
    """The number of units of each hidden layer."""
    activation: str = "tanh"
    """The nonlinearity: `sigmoid`, `tanh` or `relu`."""
    lengths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """The lengths of the steps along the gradient, divided by the learning rate."""
    observed: int = 256
    """The number of training images, one batch, for loss and gradients."""

    def check(self) -> None:
        super().check()
        options.check_at_least(self, batch_size=2, observed=2, hidden=1)
        options.check_positive(self, "learning_rate")
        if not self.lengths or min(self.lengths) <= 0:
            raise ValueError(f"`lengths` must be positive, got {self.lengths}.")
        if len(set(self.hidden)) > 1:
            raise ValueError(
                f"`hidden` must be layers of one width, got {self.hidden}."
            )
        options.check_among(self, fully_connected.KERNEL_INITS, "activation")

    def measure(self) -> dict[str, Any]:
        """Trains all networks; returns their measurements, `[records, seeds, ...]`."""
        train_split, test = self.splits()
        some = datasets.first(train_split, self.observed)
        held_out = {**test, "observed": some["image"], "observed_label": some["label"]}
        found = self.train(
            _runs(self, test["image"].shape[1]), train_split, held_out, workers=2
        )
        return {
            "options": self.identity(),
            "step": self.recorded_steps(),
            "networks": {name: summarize(each) for name, each in found.items()},
        }


def summarize(records: recording.Records) -> dict[str, Any]:
    """Returns the part of a network's records that the JSON keeps.

    The percentiles, `[records, seeds, layers, percentiles, units]`, are replaced by
    those of one typical unit of the first seed and by the movement of all units.
    """
    rest = dict(records)
    traces = rest.pop("percentiles")
    kept = output.plain(rest)
    typical = [typical_unit(traces[:, 0, layer]) for layer in range(traces.shape[2])]
    kept["traces"] = output.plain(np.stack(typical))
    kept["movement"] = output.plain(movement(traces))
    return kept


def movement(traces: np.ndarray) -> np.ndarray:
    """Returns how far the distributions of the units' inputs move in training.

    Args:
      traces: three percentiles, `[records, seeds, layers, percentiles, units]`.

    Returns:
      The movement in widths per record, `[seeds, layers]`. The movement of a unit is
      the distance that its percentiles move between two records, as a mean over records
      and percentiles. It is divided by the width, the mean distance of the outer
      percentiles. The result is the median over units.
    """
    moved = np.abs(np.diff(traces, axis=0)).mean((0, 3))
    width = (traces[..., 2, :] - traces[..., 0, :]).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.median(moved / width, -1)


def typical_unit(traces: np.ndarray) -> np.ndarray:
    """Returns the traces of the unit that is nearest to the median over all units.

    Args:
      traces: the percentiles, `[records, percentiles, units]`.
    """
    middle = np.median(traces, -1, keepdims=True)
    return traces[..., np.abs(traces - middle).mean((0, 1)).argmin()]


def _runs(config: CovariateShift, pixels: int) -> list[recording.Run]:
    made = {
        "without BN": None,
        "BN": linen.BatchNorm,
        "noisy BN": functools.partial(noise.Noisy, linen.BatchNorm),
        "noise without BN": functools.partial(noise.Noisy, norms.NoNorm),
    }
    return [_run(config, name, norm, pixels) for name, norm in made.items()]


def _run(config: CovariateShift, name: str, norm: Any, pixels: int) -> recording.Run:
    model = fully_connected.FullyConnected(config.hidden, config.activation, norm)
    rates = config.learning_rate * jnp.array(config.lengths)

    def init(key: jax.Array) -> training.TrainState:
        keys = jax.random.split(key)
        state = fully_connected.init_state(model, pixels, keys[0], config.learning_rate)
        return state.replace(key=keys[1])

    def record(state: training.TrainState, held_out: recording.Batch):
        key = jax.random.fold_in(state.key, state.step)

        def apply(params: Any) -> Any:
            return model.apply(
                {"params": params}, held_out["observed"], train=True,
                mutable=["batch_stats"], rngs={"dropout": key},
            )[0]  # fmt: skip

        def loss(params: Any) -> jax.Array:
            values = optax.softmax_cross_entropy_with_integer_labels(
                apply(params)[0], held_out["observed_label"]
            )
            return jnp.mean(values)

        layers = layers_of(state.params)
        weights = [f"Dense_{i}" for i in range(len(layers))]
        shift = measures.internal_shift(
            loss, state.params, config.learning_rate, layers, weights
        )
        inputs = jnp.stack(apply(state.params)[1])
        at = jnp.array(PERCENTILES)
        percentiles = jnp.percentile(inputs, at, axis=1)
        return {
            **fully_connected.evaluate(state, held_out),
            **measures.along_gradient(loss, state.params, rates),
            **{f"shift_{name}": value for name, value in shift.items()},
            "train_loss": loss(state.params),
            "percentiles": jnp.moveaxis(percentiles, 0, 1),
        }

    return recording.Run(
        name=name,
        init=init,
        step=recording.gradient_step(fully_connected.loss_fn),
        record=record,
        batch_size=config.batch_size,
    )


def layers_of(params: Any) -> list[list[str]]:
    """Returns the names of each layer's parts, such as `Dense_0` and `BatchNorm_0`."""
    layers: dict[int, list[str]] = {}
    for name in sorted(params):
        layers.setdefault(int(name.split("_")[1]), []).append(name)
    return [layers[i] for i in sorted(layers)]
