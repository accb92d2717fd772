"""Rows like those of a compilation, made without compiling."""

import dataclasses
import json
import subprocess

from experiments.accelerators import (
    measures,
)
from experiments.programs import cases

CASE = cases.Case(program="layer", norm="jaxbn")


def fake_worker(seen, *said, returncode=0, stderr=""):
    """Returns a fake `subprocess.run` that prints these lines and ends as requested."""

    def run(command, **options):
        seen.append(command)
        lines = "\n".join(["a log line", *map(json.dumps, said)])
        return subprocess.CompletedProcess(command, returncode, lines, stderr)

    return run


def made(case, **more):
    """Returns a row like one of the worker's."""
    about = {"jax": "1", "compiler": "libtpu 1", "fingerprint": "new", "kernels": 3}
    moved = {"read_MB": 10.0, "written_MB": 5.0, "conditionals": 0, "barriers": 0}
    memory = {"temporary_MB": 2.0, "argument_MB": 1.0, "output_MB": 1.0}
    row = dataclasses.asdict(case) | about | moved | memory
    row |= {"aliased_MB": 1.0, "compile_s": 1.5}
    if case.platform == "tpu":
        row |= {"cycles": 2_000_000, "branch_cycles": 0}
    if case.devices > 1:
        row["collectives"] = measures.count([])
    return row | more


def network_rows(**cycles):
    return [
        made(cases.Case(program="resnet50", norm=norm.replace("_", " ")), cycles=value)
        for norm, value in cycles.items()
    ]
