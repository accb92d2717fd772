"""Times every program of a few groups side by side, in one process.

    python -m experiments.device.worker --rounds 10 --groups layer resnet50

It prints a JSON line for the device, then one for each program.
"""

import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tyro

from experiments import provenance
from experiments.device import programs
from experiments.measuring import interleaved
from experiments.networks import norms
from experiments.programs import cases
from experiments.programs import steps as described

FORMS = (*norms.FORMS, "jaxbn, fast variance")
NORMS = {
    "layer": (*norms.FOUR, *FORMS, "torch"),
    "small_network": (*norms.FOUR, *FORMS),
    "short_resnet": (*norms.FOUR, "torch"),
    "resnet50": (*norms.FOUR, *FORMS, "torch"),
}

# Each entry has program, dtype and images. The arrays of the layers have 103, 206 and
# 411 MB.
GROUPS = {
    "layer": (("layer", "bfloat16", 64), ("layer", "float32", 64),
              ("layer", "bfloat16", 256)),
    "small_network": (("small_network", "bfloat16", 32),
                      ("small_network", "bfloat16", 256)),
    "resnet50": (("resnet50", "bfloat16", 128), ("resnet50", "bfloat16", 256)),
    "quick": (("layer", "float32", 2), ("short_resnet", "float32", 2)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Worker:
    """Times groups of programs on the first device of JAX."""

    groups: tuple[str, ...]
    """The groups to time, names in `GROUPS`."""
    rounds: int = 10
    """Rounds in which all programs of a group take turns."""

    def run(self) -> None:
        """Prints a line for the device, and one for each program and normalisation."""
        quick = "quick" in self.groups
        device = jax.devices()[0]
        if device.platform != "gpu" and not quick:
            sys.exit(
                f"A GPU is needed, JAX found {device.device_kind}; install "
                "`jax[cuda12]`, or use `--quick` to try the study on a CPU."
            )
        speed = copy_speed(self.rounds, 4 if quick else 1000)
        _print({"device": provenance.device_name()})
        for name in self.groups:
            for program, dtype, images in GROUPS[name]:
                for row in time_group(program, dtype, images, self.rounds):
                    _print(row | {"copy_GBps": speed})


def copy_speed(rounds: int, megabytes: int) -> float:
    """Returns the GB per second that a copy reads and writes."""
    taken = interleaved.seconds({"copy": programs.copy(megabytes)}, rounds)["copy"]
    return round(2e-3 * megabytes / statistics.median(taken), 1)


def time_group(
    program: str, dtype: str, images: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yields the rows of one program with every normalisation."""
    same = {"program": program, "dtype": dtype, "images": images}
    made: dict[str, programs.Runnable] = {}
    for norm in NORMS[program]:
        try:
            if norm == "torch":
                one = programs.Runnable(_torch(program, dtype, images))
            else:
                one = programs.make(cases.Case(norm=norm, **same))
            one.run()
        # PyTorch may not be installed, or memory may not suffice.
        except (ImportError, RuntimeError) as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            yield same | {"norm": norm, "error": why}
        else:
            made[norm] = one
    taken = interleaved.seconds({name: one.run for name, one in made.items()}, rounds)
    for norm, one in made.items():
        row = same | {"norm": norm, "ms": 1e3 * statistics.median(taken[norm])}
        if "flax" in taken:
            row["over_flax"] = interleaved.ratio(taken[norm], taken["flax"])
        yield row | {k: v for k, v in one._asdict().items() if k != "run"}


def _torch(program: str, dtype: str, images: int) -> Callable[[], Any]:
    from experiments.device import torch_programs

    height, width, channels = described.PROGRAMS[program].shape
    if program == "layer":
        shape = (images, channels, height, width)
        return torch_programs.layer(shape, described.Layer.features[0], dtype)
    blocks = (1, 1, 1, 1) if program == "short_resnet" else (3, 4, 6, 3)
    network = torch_programs.resnet(blocks)
    return torch_programs.training(network, images, height, dtype)


def _print(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


main = functools.partial(tyro.cli, Worker)

if __name__ == "__main__":
    main(args=sys.argv[1:]).run()
