"""Adapts a network from PyTorch to new data, and measures the gain of each step.

The steps are: import the weights, diagnose the statistics, recalibrate them on the new
data, freeze, fine-tune, fold, export. Expected: with the statistics of other data
evaluation is poor, and recalibration improves it without labels. Frozen layers train
well on batches that are too small for statistics. Folding changes only size and time.

Measured: recalibration alone raises the accuracy on digits by another camera from .16
to .87. The batches have four images, whose maps give each channel tens of values or
more. With them frozen layers train no better than free ones: .89 and .88 on digits, .69
and .74 on Fashion-MNIST. Folding changes no prediction.
"""

import collections
import dataclasses
import importlib.util
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import tqdm

import jaxbn
from experiments import options, output
from experiments.fine_tune import (
    evaluation,
    network,
    report,
    shipping,
    source,
    tuning,
)
from experiments.fine_tune import images as images_lib
from jaxbn import interop

# The epochs of the training in PyTorch.
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
    """The batch size of fine-tuning."""
    steps: int = 1000
    """The number of steps of fine-tuning."""
    learning_rate: float = 1e-3
    """The learning rate of Adam in fine-tuning."""
    seeds: int = 5
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
      ValueError: if an option is wrong; the message says what it must be.
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
    """Runs all stages, one after the other."""
    old, new = images_lib.images_of(config.new, config.data_dir)
    weights = config.weights or config.out / f"fine_tune_{config.new}.safetensors"
    seconds: dict[str, float] = collections.defaultdict(float)

    def timed(stage: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        made = jax.block_until_ready(function())
        seconds[stage] += time.perf_counter() - start
        return made

    if config.weights is None:
        timed(
            "train in PyTorch",
            lambda: source.train(weights, *old["train"], _EPOCHS[config.new]),
        )
    template = evaluation.NET.init(jax.random.key(0), new["test"][0][:1], train=False)
    imported = timed(
        "import", lambda: interop.from_torch(weights, template, network.NAMES)
    )
    unlabelled = new["train"][0][: config.unlabelled]
    batches = np.array_split(unlabelled, max(1, len(unlabelled) // 100))
    recalibrated = timed(
        "recalibrate",
        lambda: jaxbn.recalibrate(
            evaluation.NET, imported, batches, evaluation.training_mode
        ),
    )
    diagnosed = {
        name: diagnose(variables, unlabelled)
        for name, variables in (("imported", imported), ("recalibrated", recalibrated))
    }

    tuned: dict[str, list[Any]] = collections.defaultdict(list)
    for seed in tqdm.trange(config.seeds, desc="Fine-tuning", unit="seed", leave=False):
        tuned["statistics frozen as imported"].append(
            tuning.tune(config, imported, new["train"], seed, frozen=True)
        )
        tuned["not frozen"].append(
            tuning.tune(config, recalibrated, new["train"], seed, frozen=False)
        )
        tuned["recalibrated and frozen"].append(
            timed(
                "fine-tune",
                lambda seed=seed: tuning.tune(
                    config, recalibrated, new["train"], seed, frozen=True
                ),
            )
        )
    accuracies = {
        name: [
            evaluation.accuracy(evaluation.evaluate(v, new["test"][0]), new["test"][1])
            for v in each
        ]
        for name, each in {
            "imported": [imported],
            "recalibrated": [recalibrated],
            **tuned,
        }.items()
    }
    last = tuned["recalibrated and frozen"][-1]
    shipped = shipping.ship(last, *new["test"], timed)
    return {
        "as_imported": compare(weights, imported, *old["test"]),
        "accuracies": accuracies,
        "diagnosed": diagnosed,
        "seconds": {stage: round(took, 2) for stage, took in seconds.items()},
        "shipped": shipped,
    }


def compare(
    weights: pathlib.Path, imported: Any, images: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Compares the network on its own data here and in PyTorch, if it is installed."""
    ours = evaluation.evaluate(imported, images)
    found = {"jaxbn": evaluation.accuracy(ours, labels)}
    if importlib.util.find_spec("torch") is None:
        return found
    theirs = source.logits(weights, images)
    difference = float(np.max(np.abs(theirs - ours)))
    return {
        **found,
        "torch": evaluation.accuracy(theirs, labels),
        "largest_difference": difference,
    }


def diagnose(variables: Any, images: np.ndarray) -> list[dict[str, Any]]:
    """Returns the report of `jaxbn.diagnose`, a row for every layer."""
    found = jaxbn.diagnose(evaluation.NET, variables, images, evaluation.training_mode)
    return [
        {
            "layer": row.path,
            "mean_distance": round(row.mean_distance, 3),
            "variance_ratio": round(row.variance_ratio, 3),
            "output_shift": round(row.output_shift, 3),
        }
        for row in found.layers
    ]
