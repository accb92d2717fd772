"""Times training steps on the GPU of this machine, and compares the predictions."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from experiments.framework import output

# With command buffers a GPU runs conditionals without the host.
SETTINGS = {
    "command buffers": "",
    "no command buffers": "--xla_gpu_enable_command_buffer=",
}


def results(rounds: int, quick: bool) -> Iterator[output.Result]:
    """Yields the content of the JSON after every group of programs."""
    groups = ("quick",) if quick else ("layer", "resnet50", "small_network")
    result: dict[str, Any] = {"rounds": rounds, "rows": []}
    # The first worker that finds its device replaces this.
    result["device"] = "no device"
    for setting, flag in SETTINGS.items():
        for group in groups:
            for row in _rows(group, flag, rounds):
                if "program" in row:
                    result["rows"].append({"setting": setting} | row)
                else:
                    result |= row
            yield result


def _rows(group: str, flag: str, rounds: int) -> list[dict[str, Any]]:
    """Returns the rows of a group from a process of its own with a flag of XLA."""
    command = [sys.executable, "-m", "experiments.library.accelerators.timed_worker"]
    command += ["--groups", group, "--rounds", str(rounds)]
    # PyTorch needs memory beside JAX.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    flags = environment.get("XLA_FLAGS", "")
    environment["XLA_FLAGS"] = f"{flags} {flag}".strip()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE,
                          text=True, check=False)  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()
            if line.startswith("{")]  # fmt: skip
    if done.returncode:
        why = f"the worker ended with status {done.returncode}"
        rows.append({"program": group, "norm": "", "dtype": "", "images": 0,
                     "error": why})  # fmt: skip
    return rows
