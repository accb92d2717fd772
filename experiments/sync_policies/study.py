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

Measured on Fashion-MNIST: all of that holds. With 2 to 32 examples per worker, stale
statistics are within .3 points of exact ones, while local ones lose 39 points at 2
examples and 5 at 4. On sorted shards stale statistics lose .5 to .8 points (local ones
58 to 63), and with 64 workers none. With 1 example they lose 4. Without the backward
term they end as high, but learn much later on sorted shards. Memories of .8 to .99 give
similar results. After a sudden change a memory of .8 recovers as fast as exact
statistics, and .99 does not. A residual network on CIFAR-10 loses .5 to 1.4 points, and
3 on sorted shards; with half of the backward sums it loses none.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import numpy as np

from experiments import datasets, options, output, recording, running
from experiments.sync_policies import parts as parts_lib
from experiments.sync_policies import policies, reasons, report, shards

QUICK = {
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
_TABLES = (
    "examples", "sorted", "many", "rates", "memory", "switch", "why", "drift"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SyncPolicies:
    """Accuracy by policy of synchronisation, and why (half an hour)."""

    dataset: datasets.Dataset = "fashion_mnist"
    """The data set to train on."""
    network: Literal["fully connected", "residual"] = "fully connected"
    """The residual one is given images of half the size; of it, only accuracies."""
    channels: int = 16
    """The number of channels of the residual network."""
    steps: int = 3000
    """Mini-batches per network."""
    record_every: int = 300
    """Steps between two records."""
    workers: int = 8
    """Simulated devices."""
    many_workers: int = 64
    """The number of simulated devices in the table with many devices."""
    examples: tuple[int, ...] = (1, 2, 4, 8, 32)
    """Per worker and mini-batch."""
    usual: int = 2
    """Examples per worker of all tables but the first; one of them."""
    policies: tuple[str, ...] = policies.NAMES
    """The policies that the first two tables compare."""
    tables: tuple[str, ...] = _TABLES
    """The tables to measure; the first two are required."""
    learning_rate: float = 0.02
    """The initial learning rate of SGD; it falls to 0 on a cosine curve."""
    momentum: float = 0.9
    """The momentum of SGD."""
    rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)
    """Learning rates that are compared."""
    standardize: bool = True
    """Images of mean 0 and variance 1, else pixels from 0 to 1."""
    memories: tuple[float, ...] = (0.0, 0.5, 0.8, 0.95, 0.99)
    """The memories of the stale policies that are compared."""
    hidden: tuple[int, ...] = (128, 128, 128)
    """Units per layer, ReLU."""
    average: float = 0.99
    """Momentum of the running statistics, by which accuracy is measured."""
    tested: int = 10_000
    """Test images."""
    probes: int = 16
    """Mini-batches by which gradients are compared."""
    seeds: int = 3
    """Trainings side by side, each with its own initial weights and mini-batches."""
    quick: bool = False
    """On the embedded digits, in a minute or two."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `sync_policies_<dataset>.json`, `.md` and `.png`."""
        config = options.quick(self, QUICK)
        check(config)
        suffix = "_residual" * (config.network == "residual")
        suffix += "_raw" * (not config.standardize)
        file = f"sync_policies_{config.dataset}{suffix}"
        running.run("sync_policies", self, lambda: measure(config), report.write, file)
        for part in parts_lib.parts(config, (4, 4, 1)):
            _kept(config).forget(part.runs.values())


def check(config: SyncPolicies) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    recording.check(_plan(config))
    options.check_at_least(config, workers=2, many_workers=2, examples=1, hidden=1)
    options.check_at_least(config, tested=1, probes=1)
    options.check_positive(config, "learning_rate")
    options.check_weights(config, "momentum", "average")
    if config.usual not in config.examples or config.usual < 2:
        raise ValueError(
            f"`usual` must be one of `examples` and at least 2, got {config.usual} and "
            f"{config.examples}."
        )
    options.check_among(config, _TABLES, "tables")
    options.check_among(config, policies.NAMES, "policies")
    for name, needed in (("tables", _TABLES[:2]), ("policies", parts_lib.COMPARED)):
        chosen = getattr(config, name)
        if not set(needed) <= set(chosen):
            raise ValueError(f"`{name}` must contain {needed}, got {chosen}.")
    if config.network == "residual" and {"why", "drift"} & set(config.tables):
        raise ValueError(
            "`tables` of a residual network must be without 'why' and 'drift', which "
            f"are measured in a fully connected one, got {config.tables}."
        )
    if config.record_every <= max(reasons.LAGS):
        raise ValueError(
            f"`record_every` must be more than {max(reasons.LAGS)} steps, over which "
            f"drift is measured, got {config.record_every}."
        )


def measure(config: SyncPolicies) -> dict[str, Any]:
    """Trains all networks; returns the records by part, setting and policy."""
    train, test, white = _images(config)
    test = {name: each[: config.tested] for name, each in test.items()}
    made: dict[str, Any] = {}
    for part in parts_lib.parts(config, train["image"].shape[1:], white):
        setting = part.setting
        data = shards.split(train, setting.workers, setting.by_label)
        count = config.probes * setting.examples
        probes = {
            f"probe_{name}": array[:count].reshape(
                config.probes, setting.examples, *array.shape[1:]
            )
            for name, array in data.items()
        }
        found = recording.train(
            list(part.runs.values()),
            _plan(config),
            data,
            {**test, **probes},
            _kept(config),
            workers=2,
        )
        made.setdefault(part.name, {})[setting.name] = {
            policy: {
                name: output.plain(values) for name, values in found[run.name].items()
            }
            for policy, run in part.runs.items()
        }
    return {
        "options": options.identity(config),
        "steps": recording.recorded_steps(_plan(config)).tolist(),
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
    images, labels = datasets.load(config.dataset, split, config.data_dir)
    scaled = images.astype(np.float32) / 255
    return datasets.halved({"image": scaled, "label": labels})


def _plan(config: SyncPolicies) -> recording.Plan:
    every = config.record_every
    return recording.Plan(config.steps, every, config.seeds, config.steps)


def _kept(config: SyncPolicies) -> recording.Kept:
    return recording.Kept(config.out, "sync_policies", options.identity(config))
