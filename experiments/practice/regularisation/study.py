"""Tests whether Batch Normalization regularises, so that other methods can be weaker.

The paper (Sections 3.4 and 4.2.1): the other examples of a mini-batch act as noise, and
"Dropout can be either removed or reduced in strength". The weight of the L2 loss is
reduced by a factor of 5, which "improves the accuracy on the held-out validation data".
Shuffling examples more thoroughly, so that the same ones do not always come together,
"led to about 1% improvements in the validation accuracy".

The networks see few training images in many epochs, so that they can fit them all. They
are trained with and without BN, at dropout 0, 5, 10 and 40 %, at three weights of L2,
and with mini-batches that always have the same examples. The learning rate falls to
zero, and inference uses the statistics of all training images. So neither noise nor lag
can look like a lack of regularisation. Expected: without dropout BN generalises better;
dropout brings less with BN; a fifth of L2 is better with BN; fixed mini-batches cost
accuracy with BN, and less without.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import datasets
from experiments.framework import options, output, recording, training_study
from experiments.networks import fully_connected, inference
from experiments.practice.regularisation import figure, report
from jaxbn import linen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regularisation(training_study.TrainingStudy):
    """Compares BN with dropout, L2 and reshuffling, on few images (3 minutes)."""

    name = "regularisation"
    small: ClassVar = {
        "dataset": "digits",
        "examples": 300,
        "steps": 400,
        "record_every": 200,
        "hidden": (50, 50),
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    examples: int = 2000
    """The number of training examples, from the start of the training set."""
    steps: int = 2000
    """The number of mini-batches per network."""
    record_every: int = 500
    """The number of steps between two records."""
    batch_size: int = 32
    """The number of examples in a mini-batch."""
    learning_rate: float = 0.1
    """The initial learning rate of plain SGD; it falls linearly to zero."""
    hidden: tuple[int, ...] = (100, 100)
    """The number of units of each hidden layer."""
    dropout: tuple[float, ...] = (0.0, 0.05, 0.1, 0.4)
    """The shares of the units that dropout removes. All other comparisons use the first
    one."""
    l2: float = 0.005
    """The weight of half the sum of squared weights. A fifth of it and zero are tried
    too."""

    def check(self) -> None:
        super().check()
        options.check_at_least(
            self, batch_size=2, hidden=1, examples=self.batch_size
        )  # fmt: skip
        options.check_positive(self, "learning_rate", "l2")
        if len(self.dropout) < 2 or not all(0 <= rate < 1 for rate in self.dropout):
            raise ValueError(
                f"`dropout` must be two shares or more in [0, 1), got {self.dropout}."
            )

    def measure(self) -> dict[str, Any]:
        """Trains all networks; returns the last records of every seed."""
        train_split, test = self.splits()
        train_split = datasets.first(train_split, self.examples)
        held_out = {
            **test,
            "train_image": train_split["image"],
            "train_label": train_split["label"],
        }
        found = self.train(
            _runs(self, test["image"].shape[1]), train_split, held_out, workers=2
        )
        rows = []
        for name, records in found.items():
            network, batches = name.split(", ")
            for place, case in enumerate(_cases_of(self, batches)):
                row = {
                    quantity: output.plain(values[-1, :, place])
                    for quantity, values in records.items()
                }
                rows.append({"network": network, "batches": batches, **case, **row})
        return {"options": self.identity(), "rows": rows}


def cases(config: Regularisation) -> list[dict[str, float]]:
    """Returns the cases to train side by side: each dropout, then each weight of L2."""
    first = config.dropout[0]
    return [
        *({"dropout": rate, "l2": 0.0} for rate in config.dropout),
        *({"dropout": first, "l2": weight} for weight in (config.l2 / 5, config.l2)),
    ]


def loss_fn(model: Any, batch: recording.Batch, train: bool) -> dict[str, jax.Array]:
    """Returns loss and accuracy with the `dropout` and the `l2` of the batch."""
    logits, _ = model(batch["image"], train=train, dropout=batch["dropout"])
    made = fully_connected.cross_entropy(logits, batch["label"])
    kernels = [
        jnp.sum(layer["kernel"] ** 2)
        for layer in model.variables["params"].values()
        if "kernel" in layer
    ]
    return {**made, "loss": made["loss"] + batch["l2"] / 2 * sum(kernels)}


def _cases_of(config: Regularisation, batches: str) -> list[dict[str, float]]:
    made = cases(config)
    return made if batches == "reshuffled" else made[:1]


def _runs(config: Regularisation, pixels: int) -> list[recording.Run]:
    return [
        _run(config, network, norm, batches, pixels)
        for batches in ("reshuffled", "fixed")
        for network, norm in (("BN", linen.BatchNorm), ("without BN", None))
    ]


def _run(
    config: Regularisation, network: str, norm: Any, batches: str, pixels: int
) -> recording.Run:
    model = fully_connected.FullyConnected(config.hidden, "relu", norm)
    train_step = recording.gradient_step(loss_fn)
    own = functools.partial(linen.BatchNorm, momentum=0.0, unbiased=False)
    of_one_batch = model.clone(norm=own) if norm else model

    def init(key: jax.Array, case: Any) -> recording.State:
        keys = jax.random.split(key)
        state = fully_connected.init_state(model, pixels, keys[0], config.learning_rate)
        return {"state": state.replace(key=keys[1]), "case": case}

    def step(states: recording.State, batch: recording.Batch) -> recording.State:
        state = states["state"]
        rate = config.learning_rate * (1 - state.step / config.steps)
        state = fully_connected.with_rate(state, rate)
        return {**states, "state": train_step(state, {**batch, **states["case"]})}

    def record(states: recording.State, held_out: recording.Batch):
        train_split = {name: held_out[f"train_{name}"] for name in ("image", "label")}
        stats = inference.population(
            of_one_batch, states["state"].params, train_split["image"]
        )
        state = states["state"].replace(batch_stats=stats)
        on_train = fully_connected.evaluate(state, train_split)
        return {
            **fully_connected.evaluate(state, held_out),
            "train_accuracy": on_train["accuracy"],
            "train_loss": on_train["loss"],
        }

    run = recording.Run(
        name=f"{network}, {batches}",
        init=init,
        step=step,
        record=record,
        batch_size=config.batch_size,
        fixed=batches == "fixed",
    )
    made = _cases_of(config, batches)
    values = {
        name: jnp.array([case[name] for case in made], np.float32) for name in made[0]
    }
    return recording.side_by_side(run, values)
