"""Counts collectives and kernels of a training step by policy, in compiled programs.

`python -m experiments.library.sync_cost.compiled PLATFORM TARGET DEVICES POLICY...`
compiles for accelerators that are only described. It prints a row of JSON for each
policy.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.compilers import targets

Row = dict[str, Any]
SECONDS = 3600
# A small network is enough, because layers of every size are synchronised in the same
# way. Its images are many and large enough to compare the cycles of synchronisation
# with those of the rest.
SMALL = {"widths": (64, 128), "size": 32, "images": 64}


class Target(NamedTuple):
    """The devices to compile for."""

    platform: str
    target: str
    devices: int


EIGHT_TPU = Target("tpu", "v5e:2x4", 8)
POD = Target("tpu", "v5e:16x16", 256)
EIGHT_GPU = Target("gpu", "h200", 8)
TARGETS = (EIGHT_TPU, POD, EIGHT_GPU)


def rows(target: Target, policies: Sequence[str]) -> Iterator[Row]:
    """Compiles all policies in a process of its own and yields the row of each.

    Raises:
      RuntimeError: if that process failed; the message has the end of its output.
    """
    command = [sys.executable, "-m", "experiments.library.sync_cost.compiled"]
    command += [*map(str, target), *policies]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        said = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise RuntimeError(f"No program for {target}: {said[-500:]}")


def _main() -> None:
    platform, name, devices, *policies = sys.argv[1:]
    os.environ.update(targets.ENVIRONMENT[platform])
    # These imports come late, because importing jax reads the environment.
    from experiments.compilers import hlo, hlo_paths
    from experiments.library.sync_cost import network

    target = Target(platform, name, int(devices))
    mesh = network.mesh_of(targets.devices(name, target.devices))
    setting = network.Setting(**SMALL)
    floats = sum(layer.channels for layer in network.layers(setting))
    for policy in policies:
        step = network.make(policy, setting, mesh, abstract=True)
        text = step.function.lower(step.state, step.batch).compile().as_text()
        row = target._asdict() | {
            "policy": policy,
            "layers": len(network.layers(setting)),
            "channels": floats,
            "jax": targets.jax_version(),
            "compiler": targets.compiler_version(platform),
            **hlo_paths.waiting(text)._asdict(),
            "kernels": hlo.traffic(text).kernels,
            "cycles": hlo.cycles(text).main if platform == "tpu" else None,
        }
        if folder := os.environ.get("HLO_FOLDER"):
            with open(f"{folder}/{name} {policy}.hlo", "w") as file:
                file.write(text)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    _main()
