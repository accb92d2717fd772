"""Speed and memory beside Flax, Haiku, Equinox, PyTorch and mere streaming."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from experiments import output
from experiments.benchmark import figures
from experiments.measuring import interleaved, peers

# Kept from returning memory: on the CPU, page faults would decide. For all alike.
_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}
_FLAGS = (os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8")
_EIGHT_DEVICES = {"XLA_FLAGS": " ".join(_FLAGS).strip()}
_PARTS: dict[str, dict[str, str]] = {
    "layers": {},
    "networks": {},
    "devices": _EIGHT_DEVICES,
}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Speed and memory beside every peer that is installed (about 10 minutes)."""

    rounds: int = 15
    """Rounds in which all programs take turns; medians and quartiles are over them."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figures, table and JSON."""

    def run(self) -> None:
        """Writes `benchmark.json`, `.md` and the figures."""
        if self.rounds < 2:
            raise ValueError(f"`rounds` must be at least 2, got {self.rounds}.")
        self.out.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"study": "benchmark", "rounds": self.rounds}
        with tempfile.TemporaryDirectory() as folder:
            for part, environment in _PARTS.items():
                path = pathlib.Path(folder) / f"{part}.json"
                worker = [sys.executable, "-m", "experiments.benchmark.worker"]
                subprocess.run(
                    [*worker, part, str(self.rounds), str(path)],
                    env=os.environ | _MALLOC | environment,
                    check=True,
                )
                result |= json.loads(path.read_text())
        path = self.out / "benchmark.json"
        output.write_json(path, result)
        result = json.loads(path.read_text())  # In the order of the file.
        output.write_text(path.with_suffix(".md"), table(result))
        figures.layers(self.out / "benchmark_layers.png", result)
        figures.scaling(self.out / "benchmark_scaling.png", result)
        figures.memory(self.out / "benchmark_memory.png", result)
        print(table(result))


def geometric_means(result: dict[str, Any], dtype: str, part: str) -> dict[str, float]:
    """Time of each peer, and of the limit, over that of jaxbn, over all shapes."""
    rows = [row for row in result["layers"] if row["dtype"] == dtype]
    ratios: dict[str, list[float]] = {}
    for row in rows:
        for name, (median, *_) in row[part]["over_jaxbn"].items():
            ratios.setdefault(name, []).append(median)
    return {name: interleaved.geometric_mean(each) for name, each in ratios.items()}


_TITLES = {
    "both": "Forward and backward",
    "forward": "Forward, in training",
    "inference": "Inference",
}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    missing = {
        name: why for row in result["layers"] for name, why in row["missing"].items()
    }
    parts = [
        f"{result['device']}, JAX {result['jax']}, {result['rounds']} rounds. Times "
        "over those of jaxbn: above 1, jaxbn is faster. Flax, Haiku and jaxbn with "
        "their default variance, which is stable for jaxbn, Equinox and PyTorch only. "
        "Measured on this device alone; jaxbn has no hand-written kernel for any."
    ]
    if missing:
        parts.append("Missing: " + ", ".join(f"{k} ({v})" for k, v in missing.items()))
    for part, title in _TITLES.items():
        parts.append(f"{title}:\n\n" + _layer_table(result, part))
    more = (
        _traffic_table,
        _kept_table,
        _memory_table,
        _depth_table,
        _model_table,
        _device_table,
    )
    parts += [section(result) for section in more]
    return "\n\n".join(parts) + "\n"


def _spread(ratio: list[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratio)


def _layer_table(result: dict[str, Any], part: str) -> str:
    names = [peers.LIMIT, *(name for name in peers.PEERS if name != "jaxbn")]
    measured = result["layers"][0][part]["over_jaxbn"]
    names = [name for name in names if name in measured]
    rows = []
    for row in result["layers"]:
        over = row[part]["over_jaxbn"]
        cells = [_spread(over[name]) if name in over else "" for name in names]
        rows.append([row["dtype"], tuple(row["shape"]), *cells])
    for dtype in sorted({row["dtype"] for row in result["layers"]}, reverse=True):
        means = geometric_means(result, dtype, part)
        cells = [f"**{means[name]:.2f}**" if name in means else "" for name in names]
        rows.append([dtype, "geometric mean", *cells])
    return output.markdown(["dtype", "shape", *names], rows)


def _traffic_table(result: dict[str, Any]) -> str:
    names = [name for name in (peers.LIMIT, *peers.PEERS) if name in
             result["traffic"]["float32"]]  # fmt: skip
    rows = [
        [
            dtype,
            *("{read} + {written} in {kernels}".format(**of[name]) for name in names),
        ]
        for dtype, of in result["traffic"].items()
    ]
    return (
        "What the compiled kernels of one layer read + write forward and backward, in "
        "sizes of the input, in how many kernels, by its HLO, branches left out:\n\n"
        + output.markdown(["dtype", *names], rows)
    )


def _kept_table(result: dict[str, Any]) -> str:
    layers = list(result["kept"]["float32"])
    rows = [[dtype, *kept.values()] for dtype, kept in result["kept"].items()]
    return (
        "Kept for the backward pass of BN and ReLU, in sizes of the input, the ReLU's "
        "own included:\n\n" + output.markdown(["dtype", *layers], rows)
    )


def _memory_table(result: dict[str, Any]) -> str:
    header = ["normalisation", "kept", "peak, written out", "peak, scanned",
              "time over jaxbn's, scanned"]  # fmt: skip
    rows = [
        [
            name, row["kept"], row["written out"], row["scanned"],
            _spread(row["over_jaxbn"]),
        ]
        for name, row in sorted(
            result["memory"].items(), key=lambda item: -item[1]["scanned"]
        )
    ]  # fmt: skip
    return (
        "50 layers of normalisation, leaky ReLU and dense, activations per layer that "
        "the gradient needs:\n\n" + output.markdown(header, rows)
    )


def _device_table(result: dict[str, Any]) -> str:
    rows = [
        [
            row["style"], row["devices"], row["jaxbn_ms"],
            _spread(row["over_jaxbn"]),
        ]
        for row in result["devices"]["rows"]
    ]  # fmt: skip
    header = ["style", "devices", "jaxbn, ms", "flax.linen over jaxbn"]
    return (
        f"A batch of {tuple(result['devices']['shape'])} over the devices that one "
        "processor is split into, forward and backward:\n\n"
        + output.markdown(header, rows)
    )


def _depth_table(result: dict[str, Any]) -> str:
    rows = [
        [depth, *(f"{t['trace']} + {t['compile']}" for t in times.values())]
        for depth, times in sorted(
            result["depth"].items(), key=lambda item: int(item[0])
        )
    ]
    header = ["layers", *result["depth"]["10"]]
    return (
        "Seconds to trace + compile the gradient of BN, ReLU and dense layers:\n\n"
        + output.markdown(header, rows)
    )


def _model_table(result: dict[str, Any]) -> str:
    header = ["model", "normalisation", "time over jaxbn's", "temporary MB",
              "accessed MB", "trace + compile, s"]  # fmt: skip
    rows = [
        [
            model, name, _spread(row["over_jaxbn"]),
            row["temporary_MB"], row["accessed_MB"],
            f"{row['trace_s']} + {row['compile_s']}",
        ]
        for model, by_norm in result["models"].items()
        for name, row in by_norm.items()
    ]  # fmt: skip
    some = next(iter(next(iter(result["models"].values())).values()))
    return (
        f"Training steps, {some['images']} images of {some['size']}x{some['size']}:\n\n"
        + output.markdown(header, rows)
    )
