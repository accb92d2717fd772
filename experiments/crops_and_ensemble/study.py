"""Repeats Figure 4's evaluation: one crop, 144 crops and an ensemble of six networks.

The paper (Section 4.2.3): on ImageNet a single crop of a single network has a top-1
error of 25.2 %, 144 crops of it have 21.99 %, and six networks with 144 crops each have
20.1 %. The networks differ in larger initial weights of the convolutions, in dropout of
5 or 10 %, and in normalisation per activation in the last hidden layers. The ensemble
predicts by the arithmetic mean of the class probabilities. Here the single network is
one without those changes.

Expected: each stage lowers the error.

Measured on CIFAR-10: the crops lower it, from 39.8 to 36.6 %. Six networks have an
error of 36.5 %, a point less than each of them. That is no less than the error of the
network without their changes, which cost a point at this size. On Fashion-MNIST the
crops raise the error. With one crop, six networks lower it on both, by 1.0 and .7
points.
"""

import dataclasses
import functools
import pathlib
from typing import Any, Literal

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from experiments import datasets, options, recording, running
from experiments.crops_and_ensemble import (
    augmentation,
    crops,
    evaluation,
    network,
    report,
)
from jaxbn import training

_QUICK = {"dataset": "digits", "steps": 300}


@dataclasses.dataclass(frozen=True)
class CropsAndEnsemble:
    """Figure 4's evaluation: one crop, 144 crops, an ensemble of six networks."""

    dataset: Literal["cifar10", "fashion_mnist", "digits"] = "cifar10"
    """CIFAR-10 and Fashion-MNIST are prepared once; digits are embedded."""
    steps: int = 12_000
    """Mini-batches per network."""
    seeds: int = 3
    """Ensembles, each of six networks with their own weights and mini-batches."""
    batch_size: int = 32
    """Examples per mini-batch (paper: 32)."""
    learning_rate: float = 0.05
    """The initial learning rate; it falls exponentially to 1/100 (SGD, momentum .9)."""
    width: int = 16
    """Channels of the first convolution."""
    test_images: int = 5000
    """The number of test images, from the start of the test split."""
    quick: bool = False
    """On the embedded digits, in a minute."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `crops_and_ensemble_<dataset>.json`, `.md` and `.png`."""
        config = options.quick(self, _QUICK)
        check(config)
        running.run(
            "crops_and_ensemble",
            self,
            lambda: measure(config),
            report.write,
            f"crops_and_ensemble_{config.dataset}",
        )
        _kept(config).forget(_runs(config, ()))


def check(config: CropsAndEnsemble) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    options.check_at_least(
        config, steps=1, seeds=1, batch_size=1, width=1, test_images=1
    )
    options.check_positive(config, "learning_rate")


def measure(config: CropsAndEnsemble) -> dict[str, Any]:
    """Trains all networks and evaluates every stage.

    Returns:
      The content of the JSON.
    """
    train, test = (_split(config, name) for name in ("train", "test"))
    test = {name: array[: config.test_images] for name, array in test.items()}
    shape = train["image"].shape[1:]
    found = recording.train(
        _runs(config, (size_of(shape[0]),) * 2 + shape[2:]),
        _plan(config),
        train,
        {"label": test["label"]},
        _kept(config),
        workers=2,
    )
    height, width, _ = shape
    size = size_of(height)
    distinct = len(set(crops.scheme(height, width, size)))
    predicted = {"1": [], "144": []}  # For each network an array [seeds, N, classes].
    with tqdm.tqdm(total=len(found) * distinct, unit="crop") as bar:
        for name, member in network.NETWORKS.items():
            bar.set_description(f"Evaluating {name}")
            net = network.Network(config.width, member)
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
        "origin": datasets.origin(config.dataset, config.data_dir),
        "dataset": config.dataset,
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
        images = augmentation.augment(key, images, shape[0])
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


def _plan(config: CropsAndEnsemble) -> recording.Plan:
    # There are five checkpoints if 5 divides the number of steps, and otherwise one.
    every = config.steps // 5 if config.steps % 5 == 0 else config.steps
    return recording.Plan(config.steps, every, config.seeds, every)


def _kept(config: CropsAndEnsemble) -> recording.Kept:
    fields = options.identity(config)
    for name in ("quick", "test_images"):  # They do not change the training.
        del fields[name]
    return recording.Kept(config.out, f"crops_and_ensemble_{config.dataset}", fields)
