"""A network from PyTorch on new data: what does each step of adapting it bring?

Weights in, look at the statistics, take those of the new data, freeze, fine-tune, fold,
export. Expected: with the statistics of other data evaluation is poor, recalibration
repairs what no label is needed for, frozen layers train well on batches that are too
small for statistics, and folding changes nothing but size and time.

Measured: recalibration alone brings digits by another camera from .16 to .87. Frozen
layers train no better than free ones on batches of four images, whose maps give each
channel tens of values or more: .87 and .90 on digits, .74 and .73 on Fashion-MNIST.
Folding changes no prediction.
"""

import collections
import dataclasses
import functools
import importlib.util
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax import export

import jaxbn
from experiments import datasets, options, output
from experiments.fine_tune import network, report, source
from experiments.measuring import interleaved
from jaxbn import interop, training

NET = network.Network()
# In PyTorch.
_EPOCHS = {"digits": 30, "fashion_mnist": 1}


@dataclasses.dataclass(frozen=True)
class FineTune:
    """A network from PyTorch on new data, stage by stage (two minutes)."""

    new: Literal["digits", "fashion_mnist"] = "digits"
    """New data: digits by another camera (the network knows digits), or Fashion-MNIST
    (it knows MNIST)."""
    weights: pathlib.Path | None = None
    """A `.safetensors` file with the network's `state_dict`; default: train it in
    PyTorch, into `fine_tune_<new>.safetensors`."""
    labelled: int = 500
    """New images with labels."""
    unlabelled: int = 1000
    """New images whose statistics are taken."""
    batch_size: int = 4
    """Of fine-tuning."""
    steps: int = 1000
    """Of fine-tuning, by Adam."""
    learning_rate: float = 1e-3
    """Of fine-tuning."""
    seeds: int = 3
    """Runs of fine-tuning, each with other labelled images in another order."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `fine_tune_<new>.json`, `.md`, `.png`, and PyTorch's weights."""
        check(self)
        output.check_folder(self.out)
        path = self.out / f"fine_tune_{self.new}.json"
        output.write_result(path, "fine_tune", self, measure(self))
        print(report.write(path))


def check(config: FineTune) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: naming the option, what it must be and what it is.
    """
    options.check_at_least(
        config, labelled=1, unlabelled=1, batch_size=1, steps=1, seeds=1
    )
    if config.batch_size > config.labelled:
        raise ValueError(
            f"`batch_size` must be at most `labelled`, {config.labelled}, got "
            f"{config.batch_size}."
        )


def measure(config: FineTune) -> dict[str, Any]:
    """All stages, one after the other."""
    old, new = images_of(config)
    weights = config.weights or config.out / f"fine_tune_{config.new}.safetensors"
    seconds: dict[str, float] = {}

    def timed(stage: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        made = jax.block_until_ready(function())
        seconds[stage] = round(time.perf_counter() - start, 2)
        return made

    if config.weights is None:
        timed(
            "train in PyTorch",
            lambda: source.train(weights, *old["train"], _EPOCHS[config.new]),
        )
    template = NET.init(jax.random.key(0), new["test"][0][:1], train=False)
    imported = timed(
        "import", lambda: interop.from_torch(weights, template, network.NAMES)
    )
    unlabelled = new["train"][0][: config.unlabelled]
    batches = np.array_split(unlabelled, max(1, len(unlabelled) // 100))
    recalibrated = timed(
        "recalibrate", lambda: jaxbn.recalibrate(NET, imported, batches, _train)
    )
    diagnosed = {
        name: diagnose(variables, unlabelled)
        for name, variables in (("imported", imported), ("recalibrated", recalibrated))
    }

    tuned: dict[str, list[Any]] = collections.defaultdict(list)
    for seed in tqdm.trange(config.seeds, desc="Fine-tuning", unit="seed", leave=False):
        tuned["statistics frozen as imported"].append(
            tune(config, imported, new["train"], seed, frozen=True)
        )
        tuned["not frozen"].append(
            tune(config, recalibrated, new["train"], seed, frozen=False)
        )
        tuned["recalibrated and frozen"].append(
            timed(
                "fine-tune",
                lambda seed=seed: tune(
                    config, recalibrated, new["train"], seed, frozen=True
                ),
            )
        )
    accuracies = {
        name: [_accuracy(evaluate(v, new["test"][0]), new["test"][1]) for v in each]
        for name, each in {
            "imported": [imported],
            "recalibrated": [recalibrated],
            **tuned,
        }.items()
    }
    last = tuned["recalibrated and frozen"][-1]
    shipped = ship(last, *new["test"], timed)
    return {
        "as_imported": compare(weights, imported, *old["test"]),
        "accuracies": accuracies,
        "diagnosed": diagnosed,
        "seconds": seconds,
        "shipped": shipped,
    }


def compare(
    weights: pathlib.Path, imported: Any, images: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """The network on what it knows, here and, where it is installed, in PyTorch."""
    ours = evaluate(imported, images)
    found = {"jaxbn": _accuracy(ours, labels)}
    if importlib.util.find_spec("torch") is None:
        return found
    theirs = source.logits(weights, images)
    difference = float(np.max(np.abs(theirs - ours)))
    return {
        **found,
        "torch": _accuracy(theirs, labels),
        "largest_difference": difference,
    }


Split = tuple[np.ndarray, np.ndarray]  # Images in [0, 1], float32, and labels.


def images_of(config: FineTune) -> tuple[dict[str, Split], dict[str, Split]]:
    """What the network was trained on, and the new data."""

    def load(name: datasets.Dataset, split: Any) -> Split:
        images, labels = datasets.load(name, split, config.data_dir)
        return images.astype(np.float32) / 255, labels

    splits = ("train", "test")
    if config.new == "fashion_mnist":
        old, new = (
            {split: load(name, split) for split in splits}
            for name in ("mnist", "fashion_mnist")
        )
        return old, new
    old = {split: load("digits", split) for split in splits}
    rng = np.random.default_rng(0)

    def by_another_camera(images: np.ndarray) -> np.ndarray:
        noise = rng.normal(scale=0.05, size=images.shape).astype(np.float32)
        return 0.4 + 0.3 * images + noise  # More light, less contrast.

    return old, {split: (by_another_camera(x), y) for split, (x, y) in old.items()}


def tune(
    config: FineTune, variables: Any, train_split: Split, seed: int, frozen: bool
) -> Any:
    """The variables after some steps on few labelled images, with a new dense layer.

    What is frozen are statistics; scale and bias are trained.
    """
    rng = np.random.default_rng(seed)
    images, labels = train_split
    mine = rng.permutation(len(images))[: config.labelled]
    head = NET.init(jax.random.key(seed), images[:1], train=False)["params"]["head"]
    variables = {**variables, "params": {**variables["params"], "head": head}}
    state = training.TrainState.create(
        NET.apply, variables, optax.adam(config.learning_rate)
    )
    loss_fn = jaxbn.freeze(_loss, scale=False, bias=False) if frozen else _loss
    train_step = training.make_train_step(loss_fn)
    for indices in _batches(rng, mine, config.batch_size, config.steps):
        batch = {"x": images[indices], "y": labels[indices]}
        state, _ = train_step(state, batch)
    return {"params": state.params, "batch_stats": state.batch_stats}


def _batches(rng, examples: np.ndarray, size: int, steps: int):
    """Epoch by epoch, each in another order, without the rest that fills no batch."""
    per_epoch = len(examples) // size
    for step in range(steps):
        if step % per_epoch == 0:
            order = rng.permutation(examples)
        start = step % per_epoch * size
        yield order[start : start + size]


def _loss(model: nn.Module, batch: Any, train: bool) -> dict[str, jax.Array]:
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return {"loss": cross_entropy(model(batch["x"], train=train), batch["y"])}


def _train(model: nn.Module, x: jax.Array) -> jax.Array:
    return model(x, train=True)


def _evaluate(model: nn.Module, x: jax.Array) -> jax.Array:
    return model(x, train=False)


@jax.jit
def _logits(variables: Any, x: jax.Array) -> jax.Array:
    return NET.apply(variables, x, train=False)


def evaluate(variables: Any, images: np.ndarray) -> np.ndarray:
    """Logits `[N, 10]`."""
    parts = np.array_split(images, max(1, len(images) // 1000))
    return np.concatenate([_logits(variables, part) for part in parts])


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.argmax(logits, -1) == labels))


def diagnose(variables: Any, images: np.ndarray) -> list[dict[str, Any]]:
    """What `jaxbn.diagnose` says of every layer."""
    found = jaxbn.diagnose(NET, variables, images, _train)
    return [
        {
            "layer": row.path,
            "mean_distance": round(row.mean_distance, 3),
            "variance_ratio": round(row.variance_ratio, 3),
            "output_shift": round(row.output_shift, 3),
        }
        for row in found.layers
    ]


def ship(
    variables: Any, images: np.ndarray, labels: np.ndarray, timed: Any
) -> dict[str, dict[str, Any]]:
    """The model as it is, folded, and exported: accuracy, size, time."""
    shape = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    folded, fold_report = timed(
        "fold", lambda: jaxbn.fold(NET, variables, shape, _evaluate)
    )
    program = timed("export", lambda: _exported(folded, shape))
    some = jnp.asarray(images[:100])
    models = {
        "as it is": functools.partial(_logits, variables),
        "folded": functools.partial(_logits, folded),
        "folded and exported": jax.jit(export.deserialize(program).call),
    }
    sizes = {
        "as it is": len(flax.serialization.to_bytes(variables)),
        "folded": len(flax.serialization.to_bytes(folded)),
        "folded and exported": len(program),
    }
    programs = {
        name: lambda run=run: jax.block_until_ready(run(some))
        for name, run in models.items()
    }
    taken = interleaved.seconds(programs, rounds=15)
    outputs = {name: _in_parts(run, images) for name, run in models.items()}
    first = outputs["as it is"]
    return {
        name: {
            "accuracy": _accuracy(outputs[name], labels),
            "kilobytes": round(sizes[name] / 1e3, 1),
            "over_as_it_is": interleaved.ratio(taken[name], taken["as it is"]),
            "ms_per_100_images": round(1e3 * float(np.median(taken[name])), 2),
            "largest_difference": float(np.max(np.abs(outputs[name] - first))),
            "layers": sum(row.into is not None for row in fold_report.layers),
        }
        for name in models
    }


def _in_parts(run: Callable[[Any], Any], images: np.ndarray) -> np.ndarray:
    parts = np.array_split(images, max(1, len(images) // 1000))
    return np.concatenate([run(jnp.asarray(part)) for part in parts])


def _exported(variables: Any, shape: jax.ShapeDtypeStruct) -> bytearray:
    """The evaluation with its weights, for batches of any size, as bytes."""
    batch = export.symbolic_shape("batch")
    function = jax.jit(functools.partial(_logits, variables))
    given = jax.ShapeDtypeStruct((*batch, *shape.shape[1:]), shape.dtype)
    return export.export(function)(given).serialize()
