"""Times training steps on the GPU of this machine, and compares the predictions."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from experiments import output
from experiments.device import report

# With command buffers a GPU runs conditionals without the host.
SETTINGS = {
    "command buffers": "",
    "no command buffers": "--xla_gpu_enable_command_buffer=",
}


@dataclasses.dataclass(frozen=True)
class Device:
    """Training steps timed on the GPU that is here, beside Flax and PyTorch."""

    rounds: int = 10
    """Rounds in which the programs of a group take turns."""
    quick: bool = False
    """Two small programs, to try the script on a CPU (two minutes)."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `device.json`, `.md` and `.png` after every group."""
        if self.rounds < 2:
            raise ValueError(f"`rounds` must be at least 2, got {self.rounds}.")
        output.check_folder(self.out)
        groups = ("quick",) if self.quick else ("layer", "resnet50", "small_network")
        result: dict[str, Any] = {"rounds": self.rounds, "rows": []}
        # The first worker that finds its device replaces this.
        result["device"] = "no device"
        path, text = self.out / "device.json", ""
        for setting, flag in SETTINGS.items():
            for group in groups:
                for row in self._timed(group, flag):
                    if "program" in row:
                        result["rows"].append({"setting": setting} | row)
                    else:
                        result |= row
                output.write_result(path, "device", self, result)
                text = report.write(path)
        print(text)

    def _timed(self, group: str, flag: str) -> list[dict[str, Any]]:
        """Returns the rows of a group from a process of its own with a flag of XLA."""
        command = [sys.executable, "-m", "experiments.device.worker"]
        command += ["--groups", group, "--rounds", str(self.rounds)]
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
