"""Tests whether Batch Normalization learns to undo itself if that is the task.

The paper, Section 3: normalising an input "may change what the layer can represent".
Therefore it has scale and bias: "by setting gamma = sqrt(Var[x]) and beta = E[x], we
could recover the original activations, if that were the optimal thing to do".

Expected: the forward pass is the identity up to rounding, in training and inference.
The backward pass is not in training: the gradient loses its mean and its component
along the input. A layer that is trained to reproduce its input finds these values with
mini-batches of any size. The remaining error is the noise of their statistics, about
1.5 times the variance divided by the batch size.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import datasets
from experiments.framework import options, output, recording, training_study
from experiments.why.identity import figure, layer, report
from jaxbn import linen, training

_LEAST_STD = 0.1  # Pixels that vary less are left out.
_OBSERVED = 4096  # The number of images for the remaining error.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity(training_study.CurveStudy):
    """Trains a layer to reproduce its input (1 minute)."""

    name = "identity"
    small: ClassVar = {"dataset": "digits", "steps": 300}
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    batch_sizes: tuple[int, ...] = (4, 16, 64, 256)
    """The batch sizes of training, with one network for each."""
    learning_rate: float = 0.02
    """The learning rate of plain SGD."""
    steps: int = 600
    """The number of mini-batches per network."""

    def check(self) -> None:
        options.check_at_least(self, records=1, batch_sizes=2)
        options.check_positive(self, "learning_rate")
        super().check()

    def measure(self) -> dict[str, Any]:
        """Measures a layer with these values, and trains layers that learn them.

        The curves are `[records, seeds]`.
        """
        train = datasets.flat(self.dataset, "train", self.data_dir)["image"]
        train = train[:, train.std(0) > _LEAST_STD]
        # Images of the training set are observed, because others have another mean.
        observed = {"x": train[:_OBSERVED], "mean": train.mean(0), "std": train.std(0)}
        runs = _runs(self, train.shape[1])
        found = self.train(runs, {"x": train}, observed)
        not_undone = np.square((train - train.mean(0)) / train.std(0) - train)
        return {
            "config": self.identity(),
            "steps": self.recorded_steps(),
            "channels": train.shape[1],
            "layer": [
                {
                    "ratio": ratio,
                    "errors": {
                        name: float(f"{error:.2g}")
                        for name, error in layer.errors(ratio).items()
                    },
                }
                for ratio in layer.RATIOS
            ],
            "without_affine": output.plain(np.mean(not_undone / train.var(0))),
            "learnt": {
                str(size): output.plain(found[str(size)]) for size in self.batch_sizes
            },
        }


def _runs(config: Identity, channels: int) -> list[recording.Run]:
    return [
        make_run(size, config.learning_rate, channels) for size in config.batch_sizes
    ]


def make_run(batch_size: int, learning_rate: float, channels: int) -> recording.Run:
    """Returns the training of a layer that learns to reproduce its input.

    It records means over channels. `scale` and `bias` are their distances from
    deviation and mean of the training set, divided by the deviation. `training` and
    `evaluation` are mean squares of the change of the input, divided by its variance.
    """
    model = linen.BatchNorm()

    def init(key: jax.Array) -> training.TrainState:
        x = jnp.zeros((2, channels))
        variables = model.init(key, x, use_running_average=True)
        tx = optax.sgd(learning_rate)
        return training.TrainState.create(model.apply, variables, tx)

    def record(state: training.TrainState, held_out: recording.Batch):
        x, mean, std = (held_out[name] for name in ("x", "mean", "std"))
        variables = {"params": state.params, "batch_stats": state.batch_stats}

        def trained(batch: jax.Array) -> jax.Array:
            return model.apply(
                variables, batch, use_running_average=False, mutable=["batch_stats"]
            )[0]

        whole = x[: len(x) // batch_size * batch_size]
        parts = whole.reshape(-1, batch_size, channels)
        y = jax.vmap(trained)(parts).reshape(whole.shape)
        evaluated = model.apply(variables, x, use_running_average=True)
        var = jnp.square(std)[None]
        return {
            "scale": jnp.mean(jnp.abs(state.params["scale"] / std - 1)),
            "bias": jnp.mean(jnp.abs(state.params["bias"] - mean) / std),
            "training": jnp.mean(jnp.square(y - whole) / var),
            "evaluation": jnp.mean(jnp.square(evaluated - x) / var),
        }

    return recording.Run(
        str(batch_size),
        init,
        recording.gradient_step(_loss),
        record,
        batch_size,
    )


def _loss(model: nn.Module, batch: recording.Batch, train: bool):
    y = model(batch["x"], use_running_average=not train)
    return {"loss": jnp.sum(jnp.square(y - batch["x"]), -1) / 2}
