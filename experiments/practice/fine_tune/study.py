"""Adapts a network from PyTorch to new data, and measures the gain of each step.

The steps are: import the weights, diagnose the statistics, recalibrate them on the new
data, freeze, fine-tune, fold, export. Expected: with the statistics of other data
evaluation is poor, and recalibration improves it without labels. Frozen layers train
well on batches that are too small for statistics. Folding changes only size and time.
"""

import collections
import dataclasses
import importlib.util
import pathlib
import time
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import numpy as np
import safetensors.numpy
import tqdm

import jaxbn
from experiments.framework import options, study
from experiments.practice.fine_tune import figure, network, report, source, stages
from experiments.practice.fine_tune import images as images_lib
from jaxbn import convert

# The epochs of the training in PyTorch.
_EPOCHS = {"digits": 30, "fashion_mnist": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTune(study.Study):
    """Adapts a network from PyTorch to new data, stage by stage (2 minutes)."""

    name = "fine_tune"
    small: ClassVar = {"steps": 200, "seeds": 2}
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    new: Literal["digits", "fashion_mnist"] = "digits"
    """The new data: digits by another camera for a network trained on digits, or
    Fashion-MNIST for one trained on MNIST."""
    weights: pathlib.Path | None = None
    """A `.safetensors` file with the network's `state_dict`. Without it the network is
    trained in PyTorch, and its weights go to `fine_tune_<new>.safetensors`."""
    labelled: int = 500
    """The number of new images with labels."""
    unlabelled: int = 1000
    """The number of new images from which the statistics are computed."""
    batch_size: int = 4
    """The batch size of fine-tuning."""
    steps: int = 1000
    """The number of steps of fine-tuning."""
    learning_rate: float = 1e-3
    """The learning rate of Adam in fine-tuning."""
    seeds: int = 5
    """The number of runs of fine-tuning, each with other labelled images in another
    order."""

    def file(self) -> str:
        return f"{self.name}_{self.new}"

    def check(self) -> None:
        options.check_at_least(
            self, labelled=1, unlabelled=1, batch_size=1, steps=1, seeds=1
        )
        if self.batch_size > self.labelled:
            raise ValueError(
                f"`batch_size` must be at most `labelled`, {self.labelled}, got "
                f"{self.batch_size}."
            )

    def measure(self) -> dict[str, Any]:
        """Runs all stages, one after the other."""
        old, new = images_lib.images_of(self.new, self.data_dir)
        weights = self.weights or self.out / f"fine_tune_{self.new}.safetensors"
        seconds: dict[str, float] = collections.defaultdict(float)

        def timed(stage: str, function: Callable[[], Any]) -> Any:
            start = time.perf_counter()
            made = jax.block_until_ready(function())
            seconds[stage] += time.perf_counter() - start
            return made

        if self.weights is None:
            timed(
                "train in PyTorch",
                lambda: source.train(weights, *old["train"], _EPOCHS[self.new]),
            )
        template = network.NET.init(jax.random.key(0), new["test"][0][:1], train=False)
        arrays = safetensors.numpy.load_file(weights)
        imported = timed(
            "import", lambda: convert.from_torch(arrays, template, network.NAMES)
        )
        unlabelled = new["train"][0][: self.unlabelled]
        batches = np.array_split(unlabelled, max(1, len(unlabelled) // 100))
        recalibrated = timed(
            "recalibrate",
            lambda: jaxbn.recalibrate(
                network.NET, imported, batches, network.training_mode
            ),
        )
        diagnosed = {
            name: diagnose(variables, unlabelled)
            for name, variables in (
                ("imported", imported),
                ("recalibrated", recalibrated),
            )
        }

        tuned: dict[str, list[Any]] = collections.defaultdict(list)
        for seed in tqdm.trange(
            self.seeds, desc="Fine-tuning", unit="seed", leave=False
        ):
            tuned["statistics frozen as imported"].append(
                stages.tune(self, imported, new["train"], seed, frozen=True)
            )
            tuned["not frozen"].append(
                stages.tune(self, recalibrated, new["train"], seed, frozen=False)
            )
            tuned["recalibrated and frozen"].append(
                timed(
                    "fine-tune",
                    lambda seed=seed: stages.tune(
                        self, recalibrated, new["train"], seed, frozen=True
                    ),
                )
            )
        accuracies = {
            name: [
                network.accuracy(network.evaluate(v, new["test"][0]), new["test"][1])
                for v in each
            ]
            for name, each in {
                "imported": [imported],
                "recalibrated": [recalibrated],
                **tuned,
            }.items()
        }
        last = tuned["recalibrated and frozen"][-1]
        shipped = stages.ship(last, *new["test"], timed)
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
    ours = network.evaluate(imported, images)
    found = {"jaxbn": network.accuracy(ours, labels)}
    if importlib.util.find_spec("torch") is None:
        return found
    theirs = source.logits(weights, images)
    difference = float(np.max(np.abs(theirs - ours)))
    return {
        **found,
        "torch": network.accuracy(theirs, labels),
        "largest_difference": difference,
    }


def diagnose(variables: Any, images: np.ndarray) -> list[dict[str, Any]]:
    """Returns the report of `jaxbn.diagnose`, a row for every layer."""
    found = jaxbn.diagnose(network.NET, variables, images, network.training_mode)
    return [
        {
            "layer": row.path,
            "mean_distance": round(row.mean_distance, 3),
            "variance_ratio": round(row.variance_ratio, 3),
            "output_shift": round(row.output_shift, 3),
        }
        for row in found.layers
    ]
