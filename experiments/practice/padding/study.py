"""Measures the effect of padding on Batch Normalization of sequences.

The paper assumes mini-batches whose values all count. In a batch of sequences of
unequal length some values are padding. A layer without a mask includes them in mean and
variance; a layer with a mask does not. Layer Normalization (Ba et al., 2016) uses each
example alone. Cooijmans et al. (2016): in a recurrent network every time step should
have statistics of its own.

Images are read row by row, and end at a random row. A feed-forward and a recurrent
network are trained with BN over all rows, with masked BN, with Layer Norm and without
normalisation. Expected: outputs with BN over padding depend on the amount of padding,
and those of the others do not. Outputs of a recurrent network with statistics per time
step do not either, because further steps do not change them. Masked BN is more
accurate, and statistics per time step are better than shared ones.
"""

import dataclasses
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import datasets
from experiments.framework import options, output, recording, training_study
from experiments.practice.padding import figure, networks, report, sequences
from jaxbn import training

_LONGER = 4  # The factor by which `change` pads a batch.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Padding(training_study.TrainingStudy):
    """Trains on sequences of unequal length, with BN masked or not (2 minutes)."""

    name = "padding"
    small: ClassVar = {
        "dataset": "digits",
        "examples": 1500,
        "steps": 200,
        "record_every": 100,
        "units": 32,
        "seeds": 2,
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    examples: int = 10_000
    """The number of training examples, from the start of the training set."""
    steps: int = 1500
    """The number of mini-batches per network."""
    record_every: int = 150
    """The number of steps between two records."""
    batch_size: int = 64
    """The number of examples in a mini-batch."""
    learning_rate: float = 0.1
    """The learning rate of plain SGD."""
    shortest: int = 3
    """The number of rows of the shortest sequences; the longest have all rows."""
    units: int = 64
    """The number of units per layer."""
    tested: int = 2000
    """The number of test images, from the start of the test split."""

    def check(self) -> None:
        super().check()
        options.check_at_least(
            self, batch_size=2, units=1, tested=1, examples=self.batch_size
        )  # fmt: skip
        options.check_positive(self, "learning_rate")
        if not 1 <= self.shortest <= 8:
            raise ValueError(f"`shortest` must be 1 to 8 rows, got {self.shortest}.")

    def measure(self) -> dict[str, Any]:
        """Trains all networks; returns their records, `[records, seeds]` each."""
        train_split, test = (
            _split(self, name, seed, count)
            for seed, (name, count) in enumerate(
                (("train", self.examples), ("test", self.tested))
            )
        )
        _, rows, features = test["image"].shape
        found = self.train(_runs(self, rows, features), train_split, test, workers=2)
        return {
            "options": self.identity(),
            "step": self.recorded_steps(),
            "padding": 1 - float(np.mean(train_split["length"]) / rows),
            "networks": output.plain(found),
        }


def loss_fn(model: Any, batch: recording.Batch, train: bool) -> dict[str, jax.Array]:
    """Returns cross-entropy and accuracy per sequence."""
    logits = model(batch["image"], sequences.mask(dict(batch)), train=train)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return {
        "loss": cross_entropy(logits, batch["label"]),
        "accuracy": logits.argmax(-1) == batch["label"],
    }


def _runs(config: Padding, rows: int, features: int) -> list[recording.Run]:
    kinds: tuple[networks.Kind, ...] = get_args(networks.Kind)
    made: dict[str, Any] = {
        f"feed-forward, {kind}": networks.FeedForward(kind, config.units, rows)
        for kind in kinds
    }
    made |= {
        f"recurrent, {kind}": networks.Recurrent(kind, True, config.units)
        for kind in kinds
    }
    made["recurrent, masked BN, shared"] = networks.Recurrent(
        "masked BN", False, config.units
    )
    return [_run(config, name, made[name], rows, features) for name in made]


def _run(
    config: Padding, name: str, model: Any, rows: int, features: int
) -> recording.Run:

    def init(key: jax.Array) -> training.TrainState:
        x, mask = jnp.zeros((2, rows, features)), jnp.ones((2, rows), bool)
        variables = model.init(key, x, mask, train=False)
        tx = optax.sgd(config.learning_rate)
        return training.TrainState.create(model.apply, variables, tx)

    def record(state: training.TrainState, held_out: recording.Batch):
        variables = {"params": state.params}
        if state.batch_stats:
            variables["batch_stats"] = state.batch_stats
        logits = model.apply(
            variables, held_out["image"], sequences.mask(dict(held_out)), train=False
        )
        right = logits.argmax(-1) == held_out["label"]
        short = held_out["length"] <= rows // 2
        return {
            "accuracy": jnp.mean(right),
            "short": jnp.sum(right & short) / jnp.sum(short),
            "change": _change_by_padding(model, state, held_out),
        }

    return recording.Run(
        name=name,
        init=init,
        step=recording.gradient_step(loss_fn),
        record=record,
        batch_size=config.batch_size,
    )


def _change_by_padding(
    model: Any, state: training.TrainState, batch: recording.Batch
) -> jax.Array:
    """Returns the relative change of the logits if a batch is padded further.

    It is the root mean square of the difference, divided by that of the logits, and has
    shape (). The network is in training mode.
    """
    variables = {"params": state.params}
    if not getattr(model, "per_step", True):
        # Statistics per step are created again, because the longer batch has more
        # steps.
        variables["batch_stats"] = state.batch_stats

    def logits(batch: dict[str, jax.Array]) -> jax.Array:
        made, _ = model.apply(
            variables, batch["image"], sequences.mask(batch), train=True,
            mutable=["batch_stats"],
        )  # fmt: skip
        return made

    short = logits(dict(batch))
    difference = logits(sequences.longer(dict(batch), _LONGER)) - short
    return jnp.sqrt(jnp.mean(difference**2) / jnp.mean(short**2))


def _split(config: Padding, name: Any, seed: int, count: int) -> dict[str, np.ndarray]:
    images, labels = datasets.load(config.dataset, name, config.data_dir)
    made = sequences.from_images(images[:count], config.shortest, seed)
    return {**made, "label": labels[:count]}
