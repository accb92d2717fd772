"""Repeats Figure 4's evaluation: one crop, 144 crops and an ensemble of six networks.

The paper (Section 4.2.3): on ImageNet a single crop of a single network has a top-1
error of 25.2 %, 144 crops of it have 21.99 %, and six networks with 144 crops each have
20.1 %. The networks differ in larger initial weights of the convolutions, in dropout of
5 or 10 %, and in normalisation per activation in the last hidden layers. The ensemble
predicts by the arithmetic mean of the class probabilities. Here the single network is
one without those changes.

Expected: each stage lowers the error.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from experiments.data import datasets
from experiments.framework import options, recording, training_study
from experiments.paper.crops_and_ensemble import (
    crops,
    evaluation,
    figure,
    network,
    report,
)
from jaxbn import training


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropsAndEnsemble(training_study.TrainingStudy):
    """Repeats Figure 4: 144 crops and an ensemble of six networks (20 minutes)."""

    name = "crops_and_ensemble"
    not_in_training = ("quick", "test_images")
    small: ClassVar = {"dataset": "digits", "steps": 300}
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    dataset: Literal["cifar10", "fashion_mnist", "digits"] = "cifar10"
    """The data set. CIFAR-10 and Fashion-MNIST must be prepared; `digits` need not."""
    steps: int = 12_000
    """The number of mini-batches per network."""
    batch_size: int = 32
    """The number of examples in a mini-batch (paper: 32)."""
    learning_rate: float = 0.05
    """The initial learning rate of SGD with momentum .9; it falls exponentially to a
    hundredth."""
    width: int = 16
    """The number of channels of the first convolution."""
    test_images: int = 5000
    """The number of test images, from the start of the test split."""

    def file(self) -> str:
        return f"{self.name}_{self.dataset}"

    def interval(self) -> int:
        # There are five checkpoints if 5 divides the number of steps, or else one.
        return self.steps // 5 if self.steps % 5 == 0 else self.steps

    def check(self) -> None:
        options.check_at_least(
            self, steps=1, seeds=1, batch_size=1, width=1, test_images=1
        )
        options.check_positive(self, "learning_rate")

    def measure(self) -> dict[str, Any]:
        """Trains all networks and evaluates every stage.

        Returns:
          The content of the JSON.
        """
        train, test = (_split(self, name) for name in ("train", "test"))
        test = datasets.first(test, self.test_images)
        shape = train["image"].shape[1:]
        found = self.train(
            _runs(self, (size_of(shape[0]),) * 2 + shape[2:]),
            train,
            {"label": test["label"]},
            workers=2,
        )
        height, width, _ = shape
        size = size_of(height)
        distinct = len(set(crops.scheme(height, width, size)))
        # For each number of crops the arrays [seeds, N, classes] of all networks.
        predicted = {"1": [], "144": []}
        with tqdm.tqdm(total=len(found) * distinct, unit="crop") as bar:
            for name, member in network.NETWORKS.items():
                bar.set_description(f"Evaluating {name}")
                net = network.Network(self.width, member)
                variables = _variables(net, shape, size, found[name]["variables"][-1])
                one, mean = evaluation.predict(
                    functools.partial(_logits, net), variables, test["image"], size,
                    bar.update,
                )  # fmt: skip
                predicted["1"].append(one)
                predicted["144"].append(mean)
        # The unchanged network is the last one. It is not part of the ensemble.
        wrong = {
            of: evaluation.wrong_by_size(np.stack(each[:-1]), test["label"])
            for of, each in predicted.items()
        }
        single = {
            of: evaluation.wrong_by_size(np.stack(each[-1:]), test["label"])[1][0]
            for of, each in predicted.items()
        }
        return {
            "origin": datasets.origin(self.dataset, self.data_dir),
            "dataset": self.dataset,
            "test_images": len(test["label"]),
            "distinct_crops": distinct,
            "members": list(network.MEMBERS),
            "single": {of: _errors(each) for of, each in single.items()},
            "errors": {
                of: {str(networks): _errors(each) for networks, each in by_size.items()}
                for of, by_size in wrong.items()
            },
            "drops": {
                "crops": evaluation.drop(single["1"], single["144"]),
                "ensemble": evaluation.drop(
                    single["144"], wrong["144"][len(network.MEMBERS)][0]
                ),
            },
        }


def _errors(wrong: np.ndarray) -> list[Any]:
    return wrong.mean(-1).round(5).tolist()


def size_of(side: int) -> int:
    """Returns the side of the network's input: 7/8 of the image's, as 224 is of 256."""
    return side * 7 // 8


def _variables(
    net: network.Network, shape: tuple[int, ...], size: int, flat: np.ndarray
) -> Any:
    """Returns the variables of every seed, from flat arrays `[seeds, numbers]`."""
    inputs = (size, size, shape[2])
    shapes = jax.eval_shape(lambda: dict(net.variables(jax.random.key(0), inputs)))
    like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    unravel = jax.flatten_util.ravel_pytree(like)[1]
    return jax.vmap(unravel)(jnp.asarray(flat))


def _split(config: CropsAndEnsemble, name: Any) -> dict[str, np.ndarray]:
    """Returns images with a side that is a multiple of 8.

    With such a side every crop has whole pixels.
    """
    images, labels = datasets.load(config.dataset, name, config.data_dir)
    if config.dataset == "fashion_mnist":  # A black border makes 28 pixels 32.
        images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    if config.dataset == "digits":  # Doubling each pixel makes 8 pixels 16.
        images = images.repeat(2, 1).repeat(2, 2)
    return {"image": images, "label": labels}


def _runs(config: CropsAndEnsemble, shape: tuple[int, ...]) -> list[recording.Run]:
    return [
        _run(config, name, member, shape) for name, member in network.NETWORKS.items()
    ]


def _run(
    config: CropsAndEnsemble,
    name: str,
    member: network.Member,
    shape: tuple[int, ...],
) -> recording.Run:
    """Returns the training of one network on inputs of the given shape."""
    net = network.Network(config.width, member)
    schedule = optax.exponential_decay(config.learning_rate, config.steps, 0.01)
    train_step = recording.gradient_step(_loss)

    def init(key: jax.Array) -> training.TrainState:
        # Without this line, members with one seed would start from the same weights.
        key = jax.random.fold_in(key, list(network.NETWORKS).index(name))
        variables = net.variables(key, shape)
        tx = optax.sgd(schedule, 0.9)
        return training.TrainState.create(net.apply, variables, tx, key=key)

    def step(state: training.TrainState, batch: recording.Batch) -> Any:
        key = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
        images = batch["image"].astype(jnp.float32)
        images = crops.augment(key, images, shape[0])
        return train_step(state, {**batch, "image": images})

    def record(state: training.TrainState, _: recording.Batch) -> dict[str, jax.Array]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return {"variables": jax.flatten_util.ravel_pytree(variables)[0]}

    return recording.Run(name, init, step, record, config.batch_size, convolves=True)


def _logits(net: network.Network, variables: Any, images: jax.Array) -> jax.Array:
    return net.apply(variables, _scaled(images), train=False)


def _scaled(images: jax.Array) -> jax.Array:
    return images / 255 - 0.5


def _loss(model: Any, batch: recording.Batch, train: bool) -> dict[str, jax.Array]:
    logits = model(_scaled(batch["image"]), train=train)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return {"loss": cross_entropy(logits, batch["label"])}
