"""Compares the statistics that inference can use, and their distance to the truth.

The paper (Section 3.1, Algorithm 2): inference normalises by the population's mean and
variance. They are estimated over many training mini-batches at fixed weights, with the
unbiased variance m / (m - 1) E[var]. "Using moving averages instead, we can track the
accuracy of a model as it trains."

A network with Batch Normalization is trained at batch sizes 2 to 512. During training
five averages are updated: the exponential one with m / (m - 1) and without, the
debiased one, a window, and the average of all batches. Algorithm 2 runs afterwards,
with the factor and without. The truth is the statistics of the whole training set at
the same weights, where every layer is normalised by them.

Expected: the first layer's variance is (m - 1) / m of the truth without the factor, and
right with it. The averages track the accuracy, except the average of all batches, which
contains old weights. At a batch size of 2 the inputs of later layers differ between
training and inference with every population statistic.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

import jaxbn
from experiments.framework import options, output, recording, training_study
from experiments.networks import fully_connected, inference
from experiments.practice.inference_statistics import figure, report, statistics
from jaxbn import linen, training


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceStatistics(training_study.TrainingStudy):
    """Compares the statistics for inference with the truth (4 minutes)."""

    name = "inference_statistics"
    small: ClassVar = {
        "dataset": "digits",
        "steps": 500,
        "record_every": 50,
        "seeds": 2,
        "batch_sizes": (2, 8, 64),
        "hidden": (50, 50, 50),
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    batch_sizes: tuple[int, ...] = (2, 4, 8, 32, 128, 512)
    """The batch sizes that are compared."""
    steps: int = 1200
    """The number of mini-batches per network."""
    record_every: int = 200
    """The number of steps between two records."""
    hidden: tuple[int, ...] = (100, 100, 100)
    """The number of units of each hidden layer."""
    learning_rate: float = 1e-3
    """The learning rate of Adam."""
    momentum: float = 0.99
    """The momentum of the exponential averages: the weight of the old value."""
    window: int = 100
    """The number of batches that the window averages."""
    population: int = 10_000
    """The number of training images whose batches Algorithm 2 averages after the
    training."""

    def check(self) -> None:
        super().check()
        options.check_at_least(self, batch_sizes=2, hidden=1, window=1)
        options.check_at_least(self, population=max(self.batch_sizes))
        options.check_positive(self, "learning_rate")
        options.check_weights(self, "momentum")

    def measure(self) -> dict[str, Any]:
        """Runs all trainings, and Algorithm 2 at the end of each."""
        train_split, test = self.splits()
        held_out = {**test, "population": train_split["image"]}
        found = self.train(
            _runs(self, test["image"].shape[1]), train_split, held_out, workers=2
        )
        sizes = {}
        for size in self.batch_sizes:
            records = found[_name(size)]
            weights = records.pop("weights")[-1]
            sizes[str(size)] = {
                "during": _by_statistics(records),
                "after": algorithm_2(self, size, weights, train_split, test),
            }
        steps = self.recorded_steps()
        return {"options": self.identity(), "step": steps, "sizes": sizes}


def algorithm_2(
    config: InferenceStatistics,
    batch_size: int,
    weights: np.ndarray,
    train_split: recording.Batch,
    test: recording.Batch,
) -> dict[str, Any]:
    """Runs the paper's Algorithm 2: the statistics of many batches at fixed weights.

    Args:
      config: the options of the study.
      batch_size: the batch size of the training.
      weights: the flat weights of every seed, `[seeds, parameters]`.
      train_split: images and labels from which the batches are taken.
      test: images and labels of the test set.

    Returns:
      Accuracy and distances, `[seeds, ...]` each, of the paper's statistics and of
      those without m / (m - 1).
    """
    model = _network(config)
    template = model.init(jax.random.key(0), test["image"][:2], train=False)
    unravel = jax.flatten_util.ravel_pytree(template["params"])[1]
    images = train_split["image"][: config.population]
    used = len(images) // batch_size * batch_size
    batches = images[:used].reshape(-1, batch_size, images.shape[1])

    @jax.jit
    def measured(params: Any, stats: Any) -> dict[str, jax.Array]:
        truth = inference.population(model, params, train_split["image"])
        made = {"algorithm 2": stats, "algorithm 2, biased": biased(stats)}
        return {
            f"{name}/{quantity}": value
            for name, each in made.items()
            for quantity, value in (
                *statistics.distances(each, truth).items(),
                ("accuracy", inference.accuracy(model, params, each, test)),
            )
        }

    def biased(stats: Any) -> Any:
        factor = (batch_size - 1) / batch_size
        return {
            layer: {"mean": each["mean"], "var": each["var"] * factor}
            for layer, each in stats.items()
        }

    rows = []
    for row in weights:
        variables = {**template, "params": unravel(jnp.asarray(row))}
        variables = jaxbn.recalibrate(
            model, variables, batches, lambda model, x: model(x, train=True)
        )
        rows.append(measured(variables["params"], variables["batch_stats"]))
    return _by_statistics(
        {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    )


def _network(config: InferenceStatistics) -> fully_connected.FullyConnected:
    """Returns the network; a pass in training sets `batch_stats` to that batch's."""
    norm = functools.partial(linen.BatchNorm, momentum=0.0, unbiased=False)
    return fully_connected.FullyConnected(config.hidden, "relu", norm)


def _runs(config: InferenceStatistics, pixels: int) -> list[recording.Run]:
    return [_run(config, size, pixels) for size in config.batch_sizes]


def _run(config: InferenceStatistics, batch_size: int, pixels: int) -> recording.Run:
    followed = statistics.all_estimators(config.momentum, config.window)
    train_step = recording.gradient_step(fully_connected.loss_fn)
    model = _network(config)

    def init(key: jax.Array) -> recording.State:
        variables = model.init(key, jnp.zeros((2, pixels)), train=False)
        tx = optax.adam(config.learning_rate)
        state = training.TrainState.create(model.apply, variables, tx)
        estimates = statistics.init(followed, state.batch_stats)
        return {"state": state, "estimates": estimates}

    def step(states: recording.State, batch: recording.Batch) -> recording.State:
        state = train_step(states["state"], batch)
        estimates = statistics.update(
            followed, states["estimates"], state.batch_stats, batch_size
        )
        return {"state": state, "estimates": estimates}

    def record(states: recording.State, held_out: recording.Batch):
        params = states["state"].params
        truth = inference.population(model, params, held_out["population"])
        found = statistics.estimate(states["estimates"])
        made = {
            f"{name}/{quantity}": value
            for name, stats in found.items()
            for quantity, value in statistics.distances(stats, truth).items()
        }
        for name, stats in (found | {"truth": truth}).items():
            made[f"{name}/accuracy"] = inference.accuracy(
                model, params, stats, held_out
            )
        made["batch/accuracy"] = inference.accuracy_by_batches(
            model, params, held_out, batch_size
        )
        flat, _ = jax.flatten_util.ravel_pytree(params)
        return made | {"weights": flat}

    return recording.Run(_name(batch_size), init, step, record, batch_size)


def _by_statistics(records: recording.Records) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, values in records.items():
        statistic, quantity = name.split("/")
        found.setdefault(statistic, {})[quantity] = output.plain(values)
    return found


def _name(batch_size: int) -> str:
    return f"batch size {batch_size}"
