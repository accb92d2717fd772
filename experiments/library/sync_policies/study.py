"""Measures what each policy of synchronisation costs in accuracy.

With exact synchronisation every layer waits for all devices, twice per step; with local
statistics no layer waits. Ying et al. (2018) normalise by groups of devices, Chen et
al. (2018) by a part of the examples, and Zhong et al. (2023) freeze the statistics.
`Stale` uses the sums of the other workers from earlier steps, and no layer waits. The
workers are parts of a batch here; `tests/test_sync_policies.py` shows that devices give
the same results.

Expected: local statistics lose much at a few examples per worker, and more on shards
that are sorted by label. Stale statistics stay within half a point of exact ones, and
within a point on sorted shards. They learn more slowly without the backward term. The
faster the statistics move, the shorter the memory must be.
"""

import dataclasses
from typing import Any, ClassVar, Literal

from experiments.data import datasets
from experiments.framework import options, output, training_study
from experiments.library.sync_policies import figure, reasons, report, trainings
from experiments.library.sync_policies import parts as parts_lib

_TABLES = (
    "examples", "sorted", "many", "rates", "memory", "switch", "why", "drift"
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncPolicies(training_study.TrainingStudy):
    """Compares the accuracy of the policies of synchronisation (25 minutes)."""

    name = "sync_policies"
    small: ClassVar = {
        "dataset": "digits",
        "steps": 400,
        "record_every": 100,
        "hidden": (50, 50),
        "examples": (2,),
        "tables": ("examples", "sorted", "drift"),
        "policies": ("exact", "local", "stale, forward", "stale"),
        "probes": 4,
        "seeds": 2,
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    network: Literal["fully connected", "residual"] = "fully connected"
    """The network. The residual one takes images of half the size, and only its
    accuracies are measured."""
    channels: int = 16
    """The number of channels of the residual network."""
    steps: int = 3000
    """The number of mini-batches per network."""
    record_every: int = 300
    """The number of steps between two records."""
    workers: int = 8
    """The number of simulated devices."""
    many_workers: int = 64
    """The number of simulated devices in the table with many devices."""
    examples: tuple[int, ...] = (1, 2, 4, 8, 32)
    """The numbers of examples per worker and mini-batch that are compared."""
    usual: int = 2
    """The number of examples per worker in all tables but the first; it must be one of
    `examples`."""
    policies: tuple[str, ...] = trainings.NAMES
    """The policies that the first two tables compare."""
    tables: tuple[str, ...] = _TABLES
    """The tables to measure; the first two are required."""
    learning_rate: float = 0.02
    """The initial learning rate of SGD; it falls to 0 on a cosine curve."""
    momentum: float = 0.9
    """The momentum of SGD."""
    rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)
    """The learning rates that are compared."""
    standardize: bool = True
    """Give all images together mean 0 and variance 1. Otherwise pixels lie between 0
    and 1."""
    memories: tuple[float, ...] = (0.0, 0.5, 0.8, 0.95, 0.99)
    """The memories of the stale policies that are compared."""
    hidden: tuple[int, ...] = (128, 128, 128)
    """The number of units of each hidden layer."""
    average: float = 0.99
    """The momentum of the running statistics, by which accuracy is measured."""
    tested: int = 10_000
    """The number of test images."""
    probes: int = 16
    """The number of mini-batches by which gradients are compared."""

    def check(self) -> None:
        super().check()
        options.check_at_least(self, workers=2, many_workers=2, examples=1, hidden=1)
        options.check_at_least(self, tested=1, probes=1)
        options.check_positive(self, "learning_rate")
        options.check_weights(self, "momentum", "average")
        if self.usual not in self.examples or self.usual < 2:
            raise ValueError(
                f"`usual` must be one of `examples` and at least 2, got {self.usual} "
                f"and {self.examples}."
            )
        options.check_among(self, _TABLES, "tables")
        options.check_among(self, trainings.NAMES, "policies")
        for name, needed in (("tables", _TABLES[:2]), ("policies", parts_lib.COMPARED)):
            chosen = getattr(self, name)
            if not set(needed) <= set(chosen):
                raise ValueError(f"`{name}` must contain {needed}, got {chosen}.")
        if self.network == "residual" and {"why", "drift"} & set(self.tables):
            raise ValueError(
                "`tables` of a residual network must be without 'why' and 'drift', "
                f"which are measured in a fully connected one, got {self.tables}."
            )
        if self.record_every <= max(reasons.LAGS):
            raise ValueError(
                f"`record_every` must be more than {max(reasons.LAGS)} steps, over "
                f"which drift is measured, got {self.record_every}."
            )

    def measure(self) -> dict[str, Any]:
        """Trains all networks; returns the records by part, setting and policy."""
        train, test, white = _images(self)
        test = datasets.first(test, self.tested)
        made: dict[str, Any] = {}
        for part in parts_lib.parts(self, train["image"].shape[1:], white):
            setting = part.setting
            data = trainings.split(train, setting.workers, setting.by_label)
            count = self.probes * setting.examples
            probes = {
                f"probe_{name}": array[:count].reshape(
                    self.probes, setting.examples, *array.shape[1:]
                )
                for name, array in data.items()
            }
            found = self.train(
                list(part.runs.values()),
                data,
                {**test, **probes},
                workers=2,
            )
            made.setdefault(part.name, {})[setting.name] = {
                policy: output.plain(found[run.name])
                for policy, run in part.runs.items()
            }
        return {
            "options": self.identity(),
            "steps": self.recorded_steps(),
            "lags": list(reasons.LAGS),
            "parts": made,
        }


def _images(config: SyncPolicies) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Returns training set, test set and the value of the negative of 0.

    The images have the shape that the network takes.
    """
    if config.network == "fully connected":
        train, test = datasets.flat_splits(config.dataset, config.data_dir)
    else:
        train, test = (_halved(config, split) for split in ("train", "test"))
    if not config.standardize:
        return train, test, 1.0
    mean, std = float(train["image"].mean()), float(train["image"].std())
    train, test = (
        {**split, "image": (split["image"] - mean) / std} for split in (train, test)
    )
    return train, test, (1 - 2 * mean) / std


def _halved(config: SyncPolicies, split: Any) -> dict[str, Any]:
    return datasets.halved(datasets.scaled(config.dataset, split, config.data_dir))
