"""Compares speed and memory with Flax, Haiku, Equinox, PyTorch and mere streaming."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from experiments.framework import options, output, study
from experiments.library.benchmark import figure, report

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark(study.Study):
    """Compares speed and memory with every peer that is installed (25 minutes)."""

    name = "benchmark"
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    rounds: int = 15
    """The number of rounds in which all programs take turns. Medians and quartiles are
    over the rounds."""

    def check(self) -> None:
        options.check_at_least(self, rounds=2)

    def results(self, known: output.Result) -> Iterator[output.Result]:
        result: dict[str, Any] = {"rounds": self.rounds, "parts": []}
        for part in _QUICK if self.quick else PARTS:
            try:
                measured = self._measure(part)
            except KeyboardInterrupt:
                done = ", ".join(result["parts"]) or "nothing"
                sys.exit(f"Stopped in {part}. The JSON has what was done: {done}.")
            result["parts"].append(part)
            result["device"] = measured.pop("device")
            for name, values in measured.items():
                result.setdefault(name, {}).update(values)
            yield result

    def _measure(self, part: str) -> dict[str, Any]:
        """Returns the worker's measurements of a part, and its device."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "part.json"
            worker = [sys.executable, "-m", "experiments.library.benchmark.worker"]
            options = ["--part", part, "--rounds", str(self.rounds), "--out", str(path)]
            subprocess.run(
                [*worker, *options, "--quick" if self.quick else "--no-quick"],
                env=os.environ | _MALLOC | PARTS[part],
                check=True,
            )
            return json.loads(path.read_text())
