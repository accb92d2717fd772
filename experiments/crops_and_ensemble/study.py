"""Figure 4's evaluation: one crop, 144 crops, an ensemble of six networks.

The paper (Section 4.2.3): on ImageNet a single crop of a single network has a top-1
error of 25.2 %, 144 crops of it 21.99 %, and six networks with 144 crops each 20.1 %;
the networks differ in larger initial weights of the convolutions, in dropout of 5 or
10 % and in normalisation per activation in the last hidden layers, and the ensemble's
prediction is the arithmetic mean of the class probabilities.

Expected: each stage lowers the error.
"""

import dataclasses
import itertools
import json
import pathlib
import sys
from collections import Counter
from typing import Any, Literal

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from experiments import datasets, output, recording
from experiments.crops_and_ensemble import augmentation, crops, network, report
from jaxbn import training

_PART = 500  # Test images in one call of the network.


@dataclasses.dataclass(frozen=True)
class CropsAndEnsemble:
    """Figure 4's evaluation: one crop, 144 crops, an ensemble of six networks."""

    dataset: Literal["cifar10", "fashion_mnist", "digits"] = "cifar10"
    """CIFAR-10 and Fashion-MNIST are prepared once; digits are embedded."""
    steps: int = 1500
    """Mini-batches per network."""
    seeds: int = 3
    """Ensembles, each of six networks with their own weights and mini-batches."""
    batch_size: int = 32
    """Examples per mini-batch (paper: 32)."""
    learning_rate: float = 0.05
    """Of SGD with a momentum of .9, at the start; it falls exponentially to 1/100."""
    width: int = 16
    """Channels of the first convolution."""
    test_images: int = 2000
    """Of the test split, the first ones."""
    quick: bool = False
    """On the embedded digits, in a minute."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `crops_and_ensemble_<dataset>.json`, `.md` and `.png`."""
        config = _settled(self)
        check(config)
        output.check_folder(config.out)
        path = config.out / f"crops_and_ensemble_{config.dataset}.json"
        try:
            result = measure(config)
        except KeyboardInterrupt:
            sys.exit("Stopped. Run the same command again to resume.")
        output.write_result(path, "crops_and_ensemble", self, result)
        print(report.write(path))
        _kept(config).forget(_runs(config, ()))


def check(config: CropsAndEnsemble) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: naming the option, what it must be and what it is.
    """
    for name in ("steps", "seeds", "batch_size", "width", "test_images"):
        if getattr(config, name) < 1:
            raise ValueError(
                f"`{name}` must be at least 1, got {getattr(config, name)}."
            )
    if not 0 < config.learning_rate < float("inf"):
        raise ValueError(
            f"`learning_rate` must be positive and finite, got {config.learning_rate}."
        )


def measure(config: CropsAndEnsemble) -> dict[str, Any]:
    """Trains all networks and evaluates every stage.

    Returns:
      What the JSON holds.
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
    )
    predicted = {"1": [], "144": []}  # A [seeds, N, classes] for each network.
    height, width, _ = shape
    size = size_of(height)
    counted = Counter(crops.scheme(height, width, size))
    with tqdm.tqdm(total=len(found) * len(counted), unit="crop") as bar:
        for name, member in network.MEMBERS.items():
            bar.set_description(f"Evaluating {name}")
            net = network.Network(config.width, member)
            variables = _variables(net, shape, size, found[name]["variables"][-1])
            one, all_ = _predict(net, variables, test["image"], counted, size, bar)
            predicted["1"].append(one)
            predicted["144"].append(all_)
    wrong = {
        of: wrong_by_size(np.stack(each), test["label"])
        for of, each in predicted.items()
    }
    return {
        "origin": datasets.origin(config.dataset, config.data_dir),
        "dataset": config.dataset,
        "test_images": len(test["label"]),
        "distinct_crops": len(counted),
        "members": list(network.MEMBERS),
        "errors": {
            of: {
                str(networks): each.mean(-1).round(5).tolist()
                for networks, each in by_size.items()
            }
            for of, by_size in wrong.items()
        },
        "drops": drops(wrong),
    }


def size_of(side: int) -> int:
    """The network's input: 7/8 of the image's side, as 224 is of 256."""
    return side * 7 // 8


def wrong_by_size(predicted: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """Which images ensembles of every size get wrong.

    Args:
      predicted: class probabilities, `[networks, seeds, N, classes]`.
      labels: `[N]`.

    Returns:
      By the number of networks, for every choice of so many: `[choices, seeds, N]`, 1
      where the class of the highest mean probability is not the label.
    """
    networks = len(predicted)
    return {
        count: np.stack(
            [
                predicted[list(choice)].mean(0).argmax(-1) != labels
                for choice in itertools.combinations(range(networks), count)
            ]
        ).astype(float)
        for count in range(1, networks + 1)
    }


def drops(wrong: dict[str, dict[int, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """By how much each stage lowers the error, and how sure that is.

    From one crop to 144: the mean of all networks. From one network to all, with 144
    crops: against the network which is best on these very images, the sternest choice.

    Args:
      wrong: as `wrong_by_size` returns it, by the number of crops.

    Returns:
      By stage `seeds`, the drop of each, and `standard_error` of their mean, over test
      images.
    """
    alone, crops_alone = wrong["1"][1], wrong["144"][1]  # [networks, seeds, N]
    ensemble = wrong["144"][len(alone)][0]
    best = crops_alone.mean(-1).argmin(0)  # [seeds]
    of_best = crops_alone[best, np.arange(len(best))]
    return {
        "crops": _drop((alone - crops_alone).mean(0)),
        "ensemble": _drop(of_best - ensemble),
    }


def _drop(difference: np.ndarray) -> dict[str, Any]:
    """Of `[seeds, N]`."""
    each = difference.mean(0)
    return {
        "seeds": difference.mean(-1).round(5).tolist(),
        "standard_error": round(float(each.std() / np.sqrt(len(each))), 5),
    }


def _predict(
    net: network.Network,
    variables: Any,
    images: np.ndarray,
    counted: Counter[crops.Crop],
    size: int,
    bar: tqdm.tqdm,
) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities `[seeds, N, classes]` of one crop, and of all on average."""

    @jax.jit
    def probabilities(images: jax.Array) -> jax.Array:
        def of_seed(variables: Any) -> jax.Array:
            return jax.nn.softmax(net.apply(variables, _scaled(images), train=False))

        return jax.vmap(of_seed)(variables)

    middle = crops.single(*images.shape[1:3], size)
    total: Any = 0.0
    for crop, count in counted.items():
        parts = [
            probabilities(crops.take(jnp.asarray(part, jnp.float32), crop, size))
            for part in np.split(images, range(_PART, len(images), _PART))
        ]
        predicted = np.concatenate(parts, axis=1)
        if crop == middle:
            one = predicted
        total = total + count * predicted
        bar.update()
    return one, total / counted.total()


def _variables(
    net: network.Network, shape: tuple[int, ...], size: int, flat: np.ndarray
) -> Any:
    """Those of every seed, from `[seeds, numbers]`."""
    like = net.variables(jax.random.key(0), (size, size, shape[2]))
    unravel = jax.flatten_util.ravel_pytree(dict(like))[1]
    return jax.vmap(unravel)(jnp.asarray(flat))


def _scaled(images: jax.Array) -> jax.Array:
    return images / 255 - 0.5


def _split(config: CropsAndEnsemble, name: Any) -> dict[str, np.ndarray]:
    """Images whose side is a multiple of 8, so that every crop has whole pixels."""
    images, labels = datasets.load(config.dataset, name, config.data_dir)
    if config.dataset == "fashion_mnist":  # 28 pixels, black at the border: 32.
        images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    if config.dataset == "digits":  # 8 pixels: 16, each doubled.
        images = images.repeat(2, 1).repeat(2, 2)
    return {"image": images, "label": labels}


def _runs(config: CropsAndEnsemble, shape: tuple[int, ...]) -> list[recording.Run]:
    return [
        _run(config, name, member, shape) for name, member in network.MEMBERS.items()
    ]


def _run(
    config: CropsAndEnsemble,
    name: str,
    member: network.Member,
    shape: tuple[int, ...],
) -> recording.Run:
    """The training of one network on inputs of that shape."""
    net = network.Network(config.width, member)
    schedule = optax.exponential_decay(config.learning_rate, config.steps, 0.01)
    train_step = training.make_train_step(_loss)

    def init(key: jax.Array) -> training.TrainState:
        # Else members with one seed would start from the same weights.
        key = jax.random.fold_in(key, list(network.MEMBERS).index(name))
        variables = net.variables(key, shape)
        tx = optax.sgd(schedule, 0.9)
        return training.TrainState.create(net.apply, variables, tx, key=key)

    def step(state: training.TrainState, batch: recording.Batch) -> Any:
        key = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
        images = batch["image"].astype(jnp.float32)
        images = augmentation.augment(key, images, shape[0])
        return train_step(state, {**batch, "image": images})[0]

    def record(state: training.TrainState, _: recording.Batch) -> dict[str, jax.Array]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return {"variables": jax.flatten_util.ravel_pytree(variables)[0]}

    return recording.Run(name, init, step, record, config.batch_size, convolves=True)


def _loss(model: Any, batch: recording.Batch, train: bool) -> dict[str, jax.Array]:
    logits = model(_scaled(batch["image"]), train=train)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return {"loss": cross_entropy(logits, batch["label"])}


def _settled(config: CropsAndEnsemble) -> CropsAndEnsemble:
    """What is run: smaller where it shall be quick."""
    if not config.quick:
        return config
    return dataclasses.replace(config, dataset="digits", steps=min(config.steps, 300))


def _plan(config: CropsAndEnsemble) -> recording.Plan:
    # Five checkpoints where the number of steps allows it, else one.
    every = config.steps // 5 if config.steps % 5 == 0 else config.steps
    return recording.Plan(config.steps, every, config.seeds, every)


def _kept(config: CropsAndEnsemble) -> recording.Kept:
    fields = dataclasses.asdict(config)
    for name in ("data_dir", "out", "quick", "test_images"):  # Decide no training.
        del fields[name]
    fields = json.loads(json.dumps(fields))
    return recording.Kept(config.out, f"crops_and_ensemble_{config.dataset}", fields)
