"""Compares the relatives of Batch Normalization for batches of few examples.

Ioffe (2017): Batch Renormalization loses less than Batch Normalization with small
batches. Yan et al. (2020): averages over steps, forward and backward (MABN), lose
nothing at two images. Yao et al. (2020): moments of the last batches, brought to the
new weights (CBN), lose little at four. Singh and Krishnan (2019): Filter Response
Normalization does not depend on the batch. Wu and He (2018): nor does Group
Normalization. Singh and Shrivastava (2019), Summers and Dinneen (2020): inference that
mixes in the statistics of each example makes up for a part of the loss.

A small convolutional network is trained for equal epochs at every batch size. Each
layer has its own learning rate, chosen on a part of the training set. Expected: at the
smallest size every relative is better than Batch Normalization, and at the largest none
is by more than a point.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import datasets
from experiments.framework import options, output, recording, training_study
from experiments.practice.small_batches import figure, network, report
from jaxbn import training, variants

_TESTED = 100  # The number of images of a batch in evaluation.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallBatches(training_study.TrainingStudy):
    """Compares BN's relatives at batches of 2, 8 and 32 (25 minutes)."""

    name = "small_batches"
    small: ClassVar = {
        "dataset": "digits",
        "examples": 300,
        "validation": 200,
        "epochs": 1,
        "batch_sizes": (2, 10),
        "channels": (8, 8),
        "rates": (0.003,),
        "weights": (0.1,),
        "seeds": 2,
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    examples: int = 6000
    """The number of training examples, from the start of the training set."""
    validation: int = 2000
    """The number of examples after them that choose learning rates and weights."""
    epochs: int = 2
    """The number of passes over the examples, equal for all batch sizes."""
    batch_sizes: tuple[int, ...] = (2, 8, 32)
    """The batch sizes that are compared."""
    rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    """The learning rates of plain SGD, divided by the batch size."""
    weights: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    """The weights of each example in inference from which one is chosen."""
    channels: tuple[int, ...] = (16, 32, 64)
    """The channels of each convolution; multiples of 8."""

    def check(self) -> None:
        options.check_at_least(
            self, batch_sizes=2, channels=8, epochs=1, seeds=1, validation=_TESTED,
            examples=max(self.batch_sizes, default=2),
        )  # fmt: skip
        options.check_weights(self, "weights")
        options.check_positive(self, "rates")
        if any(channels % 8 for channels in self.channels):
            raise ValueError(f"`channels` must be multiples of 8, got {self.channels}.")

    def measure(self) -> dict[str, Any]:
        """Trains all networks; returns accuracies by size and kind, `[seeds, rates]`.

        Each has one for the validation part and one for the test set.
        """
        train_split, test = (
            datasets.scaled(self.dataset, name, self.data_dir)
            for name in ("train", "test")
        )
        last = self.examples + self.validation
        held_out = {
            "validation": {k: v[self.examples : last] for k, v in train_split.items()},
            "test": test,
        }
        train_split = datasets.first(train_split, self.examples)
        sizes = {}
        for size in self.batch_sizes:
            steps = self.epochs * (self.examples // size)
            plan = recording.Plan(steps, steps, self.seeds, steps)
            shape = train_split["image"].shape[1:]
            runs = [
                _run(self, kind, norm, size, shape, steps)
                for kind, norm in network.kinds(size, steps).items()
            ]
            found = self.train(runs, train_split, held_out, plan=plan)
            sizes[str(size)] = {
                name.split(",")[0]: {
                    split: output.plain({k: v[0] for k, v in _of(records, split)})
                    for split in held_out
                }
                for name, records in found.items()
            }
        return {"options": self.identity(), "sizes": sizes}


def _of(records: recording.Records, split: str) -> list[tuple[str, np.ndarray]]:
    """Returns the records of a split by the name of their statistics."""
    pairs = [(name.split(": "), values) for name, values in records.items()]
    return [(name, values) for (part, name), values in pairs if part == split]


def _run(
    config: SmallBatches,
    kind: str,
    norm: Any,
    size: int,
    shape: tuple[int, ...],
    steps: int,
) -> recording.Run:
    # A quarter of the training, as in the paper of Cross-Iteration BN.
    model = network.ConvNet(kind, norm, config.channels, steps // 4)

    def init(key: jax.Array, rate: jax.Array) -> training.TrainState:
        variables = model.init(key, jnp.zeros((2, *shape)), train=False)
        tx = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
        state = training.TrainState.create(model.apply, variables, tx)
        rates = {"learning_rate": jnp.asarray(rate * size, jnp.float32)}
        return state.replace(opt_state=state.opt_state._replace(hyperparams=rates))

    def evaluate(variables: Any, images: jax.Array) -> jax.Array:
        return model.apply(variables, images, train=False)  # type: ignore

    def record(state: training.TrainState, held_out: Any) -> dict[str, jax.Array]:
        ways = {"running": evaluate}
        if kind == "BN":
            ways["test batch"] = variants.with_variant(evaluate, variants.TestTime())
            for weight in config.weights:
                variant = variants.ExampleWeighting(weight)
                ways[f"example {weight}"] = variants.with_variant(evaluate, variant)
        given = {"params": state.params, "batch_stats": state.batch_stats}
        return {
            f"{split}: {way}": network.accuracy(run, given, data, _TESTED)
            for split, data in held_out.items()
            for way, run in ways.items()
        }

    run = recording.Run(
        name=f"{kind}, batch size {size}",
        init=init,
        step=recording.gradient_step(_loss_fn),
        record=record,
        batch_size=size,
        convolves=True,
    )
    return recording.side_by_side(run, jnp.asarray(config.rates))


def _loss_fn(model: Any, batch: recording.Batch, train: bool) -> dict[str, jax.Array]:
    logits = model(batch["image"], train=train)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return {"loss": loss, "accuracy": logits.argmax(-1) == batch["label"]}
