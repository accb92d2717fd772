"""Repeats the paper's Figures 2 and 3 at full size, with ImageNet and many devices.

It trains the network of Figure 5 with and without Batch Normalization, in the six
configurations of Section 4.2.2. Mini-batches of random-resized crops are read record by
record. Training is synchronous and data-parallel over all devices of all processes:
statistics and gradients are those of the whole mini-batch, of which each device has an
equal part.

Expected: the results of `learning_rate_ladder`, the same study for 2 cores.

Measured: ImageNet was not available. On ten of its classes, at 64 pixels and an eighth
of the channels, Inception stays at chance for 2,000 steps, and with BN the accuracy is
.30.
"""

import dataclasses
import pathlib
from typing import Any

import jax

from experiments import options, running
from experiments.imagenet import one_run, report
from experiments.images import source
from experiments.networks import inception_training as it

_QUICK = {
    "dataset": "digits",
    "validation": "test",
    "configurations": ("BN-x5",),
    "steps": 150,
    "record_every": 50,
    "checkpoint_every": 50,
    "batch_size": 16,
    "size": 32,
    "width": 1 / 16,
    "learning_rate": 0.03,
    "epochs": 2,
    "threads": 2,
}


@dataclasses.dataclass(frozen=True)
class ImageNet:
    """The paper's Figures 2 and 3 at full definition: for many devices, and days."""

    dataset: str = "imagenet2012"
    """Name of a TFDS set with `image` and `label`, prepared as ArrayRecord."""
    train: str = "train"
    """Its split that is trained on."""
    validation: str = "validation"
    """Its split by which accuracy is measured."""
    configurations: tuple[str, ...] = tuple(it.RECIPES)
    """The names of the configurations to train, one after the other."""
    steps: int = 1_000_000
    """Mini-batches of each (paper: 31 million of 32 images for Inception)."""
    epochs: int = 1000
    """After which the images end, if the steps have not."""
    record_every: int = 10_000
    """Steps between two points of the curves."""
    checkpoint_every: int = 10_000
    """Steps between two checkpoints; a killed run goes on from the last."""
    batch_size: int = 32
    """Images in a mini-batch of all devices together (paper: 32)."""
    size: int = 224
    """Pixels of a side (paper: 224)."""
    width: float = 1.0
    """Channels over those of Figure 5."""
    learning_rate: float = 0.0015
    """The initial learning rate of Inception (paper: .0015)."""
    final_rate: float = 0.02
    """The share of the learning rate that is left at the end (not in the paper)."""
    l2: float = 1e-4
    """Weight decay of Inception, of kernels (not in the paper)."""
    bn_momentum: float = 0.99
    """Weight of the old running statistics."""
    bfloat16: bool = False
    """Compute in bfloat16; statistics, parameters and their updates stay float32."""
    seed: int = 0
    """The seed of the weights, the order, the crops and the distortions."""
    threads: int = 16
    """That read and decode images, in each process."""
    quick: bool = False
    """On the embedded digits, in a minute or two."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `imagenet_<dataset>.json`, `.md` and `.png`."""
        config = options.quick(self, _QUICK)
        check(config)
        running.run(
            "imagenet",
            self,
            lambda: measure(config),
            report.write,
            f"imagenet_{config.dataset.replace('/', '_')}",
        )
        for name in config.configurations:
            one_run.forget(config, name)


def check(config: ImageNet) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    options.check_among(config, it.RECIPES, "configurations")
    options.check_at_least(
        config, steps=1, epochs=1, record_every=1, checkpoint_every=1, size=32
    )
    options.check_at_least(config, threads=1, seed=0, l2=0)
    options.check_positive(config, "width", "learning_rate", "final_rate")
    options.check_weights(config, "bn_momentum")
    for name in ("steps", "checkpoint_every"):
        if getattr(config, name) % config.record_every:
            raise ValueError(
                f"`{name}` must be a multiple of `record_every`, "
                f"{config.record_every}, got {getattr(config, name)}."
            )
    devices = jax.device_count()
    if config.batch_size < 1 or config.batch_size % devices:
        raise ValueError(
            f"`batch_size` must be a multiple of the {devices} devices, got "
            f"{config.batch_size}."
        )


def measure(config: ImageNet) -> dict[str, Any]:
    """Trains all configurations; returns accuracy and loss over their trainings."""
    train, validation = (
        source.read(config.dataset, split, config.data_dir)
        for split in (config.train, config.validation)
    )
    return {
        "config": options.identity(config),
        "images": {"train": len(train.records), "validation": len(validation.records)},
        "devices": jax.device_count(),
        "runs": {
            name: {
                "learning_rate": config.learning_rate * it.RECIPES[name].learning_rate,
                **one_run.train(config, name, train, validation),
            }
            for name in config.configurations
        },
    }
