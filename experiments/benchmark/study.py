"""Compares speed and memory with Flax, Haiku, Equinox, PyTorch and mere streaming."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from experiments import output
from experiments.benchmark import report

# With these variables malloc does not return memory, for all programs. Otherwise page
# faults would decide the times on a CPU.
_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}
_FLAGS = (os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8")
_EIGHT_DEVICES = {"XLA_FLAGS": " ".join(_FLAGS).strip()}
# Each part is measured in a process of its own, with these environment variables.
PARTS: dict[str, dict[str, str]] = {
    "float32": {},
    "bfloat16": {},
    "traffic": {},
    "sizes": {},
    "depth": {},
    "memory": {},
    "resnet50": {},
    "bn_inception": {},
    "folded": {},
    "devices": _EIGHT_DEVICES,
}
_QUICK = ("float32", "bfloat16", "traffic")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Speed and memory beside every peer that is installed (about 10 minutes)."""

    rounds: int = 15
    """Rounds in which all programs take turns; medians and quartiles are over them."""
    quick: bool = False
    """Only two layers, and what a layer moves and keeps (a minute)."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figures, table and JSON."""

    def run(self) -> None:
        """Writes `benchmark.json`, `.md` and the figures as each part ends."""
        if self.rounds < 2:
            raise ValueError(f"`rounds` must be at least 2, got {self.rounds}.")
        output.check_folder(self.out)
        path = self.out / "benchmark.json"
        result: dict[str, Any] = {"rounds": self.rounds, "parts": []}
        text = ""
        for part in _QUICK if self.quick else PARTS:
            try:
                measured = self._measure(part)
            except KeyboardInterrupt:
                done = ", ".join(result["parts"]) or "nothing"
                sys.exit(f"Stopped in {part}. {path} has what was done: {done}.")
            result["parts"].append(part)
            result["device"] = measured.pop("device")
            for name, values in measured.items():
                result.setdefault(name, {}).update(values)
            output.write_result(path, "benchmark", self, result)
            text = report.write(path)
        print(text)

    def _measure(self, part: str) -> dict[str, Any]:
        """Returns the worker's measurements of a part, and its device."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "part.json"
            worker = [sys.executable, "-m", "experiments.benchmark.worker"]
            options = ["--part", part, "--rounds", str(self.rounds), "--out", str(path)]
            subprocess.run(
                [*worker, *options, "--quick" if self.quick else "--no-quick"],
                env=os.environ | _MALLOC | PARTS[part],
                check=True,
            )
            return json.loads(path.read_text())
