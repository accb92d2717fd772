"""Measures one part of `benchmark` in a process of its own.

`benchmark` sets its environment: malloc keeps its memory, so that page faults do not
change the times, and there are as many devices as the part needs.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import tyro

from experiments.framework import provenance
from experiments.library.benchmark import devices, folded, layers, networks
from experiments.networks import inception, models

PARTS: dict[str, Callable[[int, bool], dict[str, Any]]] = {
    "float32": functools.partial(layers.times, "float32"),
    "bfloat16": functools.partial(layers.times, "bfloat16"),
    "traffic": lambda rounds, quick: layers.traffic_and_kept(),
    "sizes": lambda rounds, quick: layers.sizes(rounds),
    "depth": lambda rounds, quick: networks.depth(),
    "memory": lambda rounds, quick: {"memory": networks.memory(rounds)},
    "resnet50": lambda rounds, quick: networks.model(models.ResNet50, rounds),
    "bn_inception": lambda rounds, quick: networks.model(inception.BNInception, rounds),
    "folded": lambda rounds, quick: folded.measure(rounds),
    "devices": lambda rounds, quick: devices.measure(rounds),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worker:
    """Measures one part."""

    part: str
    """The part to measure, a name in `PARTS`."""
    rounds: int
    """The number of rounds in which all programs take turns."""
    quick: bool = False
    """Measure fewer shapes."""
    out: pathlib.Path
    """The path of the JSON to write."""

    def run(self) -> None:
        """Writes the measurements and the name of the device."""
        measured = PARTS[self.part](self.rounds, self.quick)
        result = {"device": provenance.device_name(), **measured}
        self.out.write_text(json.dumps(result))


if __name__ == "__main__":
    tyro.cli(Worker).run()
