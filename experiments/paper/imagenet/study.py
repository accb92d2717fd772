"""Repeats the paper's Figures 2 and 3 at full size, with ImageNet and many devices.

It trains the network of Figure 5 with and without Batch Normalization, in the six
configurations of Section 4.2.2. Mini-batches of random-resized crops are read record by
record. Training is synchronous and data-parallel over all devices of all processes:
statistics and gradients are those of the whole mini-batch, of which each device has an
equal part.

Expected: the results of `learning_rate_ladder`, the same study for 2 cores.
"""

import dataclasses
from typing import Any, ClassVar

import jax

from experiments.data import source
from experiments.framework import options, study
from experiments.networks import inception_training as it
from experiments.paper.imagenet import figure, one_run, report


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNet(study.Study):
    """Repeats Figures 2 and 3 at full size, on many devices (days)."""

    name = "imagenet"
    not_in_training = ("configurations", "checkpoint_every", "threads", "quick")
    small: ClassVar = {
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
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    dataset: str = "imagenet2012"
    """The name of a TFDS set with `image` and `label`, prepared as ArrayRecord."""
    train: str = "train"
    """The split of the data set that is trained on."""
    validation: str = "validation"
    """The split of the data set by which accuracy is measured."""
    configurations: tuple[str, ...] = tuple(it.RECIPES)
    """The names of the configurations to train, one after the other."""
    steps: int = 1_000_000
    """The number of mini-batches per configuration (paper: 31 million of 32 images for
    Inception)."""
    epochs: int = 1000
    """The number of passes over the images, which must suffice for the steps."""
    record_every: int = 10_000
    """The number of steps between two points of the curves."""
    checkpoint_every: int = 10_000
    """The number of steps between two checkpoints, from which a killed run resumes."""
    batch_size: int = 32
    """The number of images in a mini-batch of all devices together (paper: 32)."""
    size: int = 224
    """The side of an image in pixels (paper: 224)."""
    width: float = 1.0
    """The number of channels, as a factor of that in Figure 5."""
    learning_rate: float = 0.0015
    """The initial learning rate of Inception (paper: .0015)."""
    final_rate: float = 0.02
    """The share of the learning rate that is left at the end (not in the paper)."""
    l2: float = 1e-4
    """The weight decay of the kernels of Inception (not in the paper)."""
    bn_momentum: float = 0.99
    """The weight of the old running statistics in an update."""
    bfloat16: bool = False
    """Compute in bfloat16; statistics, parameters and their updates stay float32."""
    seed: int = 0
    """The seed of the weights, the order, the crops and the distortions."""
    threads: int = 16
    """The number of threads that read and decode images, in each process."""

    def file(self) -> str:
        return f"{self.name}_{self.dataset.replace('/', '_')}"

    def check(self) -> None:
        options.check_among(self, it.RECIPES, "configurations")
        options.check_at_least(
            self, steps=1, epochs=1, record_every=1, checkpoint_every=1, size=32
        )
        options.check_at_least(self, threads=1, seed=0, l2=0)
        options.check_positive(self, "width", "learning_rate", "final_rate")
        options.check_weights(self, "bn_momentum")
        for name in ("steps", "checkpoint_every"):
            if getattr(self, name) % self.record_every:
                raise ValueError(
                    f"`{name}` must be a multiple of `record_every`, "
                    f"{self.record_every}, got {getattr(self, name)}."
                )
        devices = jax.device_count()
        if self.batch_size < 1 or self.batch_size % devices:
            raise ValueError(
                f"`batch_size` must be a multiple of the {devices} devices, got "
                f"{self.batch_size}."
            )

    def measure(self) -> dict[str, Any]:
        """Trains all configurations; returns accuracy and loss over their trainings."""
        train, validation = (
            source.read(self.dataset, split, self.data_dir)
            for split in (self.train, self.validation)
        )
        return {
            "config": self.identity(),
            "images": {
                "train": len(train.records),
                "validation": len(validation.records),
            },
            "devices": jax.device_count(),
            "runs": {
                name: {
                    "learning_rate": self.learning_rate
                    * it.RECIPES[name].learning_rate,
                    **one_run.train(self, name, train, validation),
                }
                for name in self.configurations
            },
        }
