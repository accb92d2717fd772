"""Speed and memory beside Flax, Haiku, Equinox, PyTorch and the machine's own limit."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from experiments import interleaved, peers, plotting

# Kept from returning memory: on the CPU, page faults would decide. For all alike.
_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Speed and memory beside every peer that is installed (about 10 minutes)."""

    rounds: int = 21
    """Rounds in which all programs take turns; medians and quartiles are over them."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figures, table and JSON."""

    def run(self) -> None:
        """Writes `benchmark.json`, `.md` and the figures."""
        if self.rounds < 2:
            raise ValueError(f"`rounds` must be at least 2, got {self.rounds}.")
        self.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "measured.json"
            worker = [sys.executable, "-m", "experiments.benchmark_worker"]
            subprocess.run(
                [*worker, str(self.rounds), str(path)],
                env=os.environ | _MALLOC,
                check=True,
            )
            result = json.loads(path.read_text())
        path = self.out / "benchmark.json"
        plotting.write_json(path, result)
        result = json.loads(path.read_text())  # In the order of the file.
        plotting.write_text(path.with_suffix(".md"), table(result))
        plotting.benchmark_layers(self.out / "benchmark_layers.png", result)
        plotting.benchmark_scaling(self.out / "benchmark_scaling.png", result)
        print(table(result))


def geometric_means(result: dict[str, Any], dtype: str, part: str) -> dict[str, float]:
    """Time of each peer, and of the limit, over that of jaxbn, over all shapes."""
    rows = [row for row in result["layers"] if row["dtype"] == dtype]
    ratios: dict[str, list[float]] = {}
    for row in rows:
        for name, (median, *_) in row[part]["over_jaxbn"].items():
            ratios.setdefault(name, []).append(median)
    return {name: interleaved.geometric_mean(each) for name, each in ratios.items()}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    missing = {
        name: why for row in result["layers"] for name, why in row["missing"].items()
    }
    parts = [
        f"{result['device']}, JAX {result['jax']}, {result['rounds']} rounds. Times "
        "over those of jaxbn: above 1, jaxbn is faster. Flax, Haiku and jaxbn with "
        "their default variance, which is stable for jaxbn, Equinox and PyTorch only."
    ]
    if missing:
        parts.append("Missing: " + ", ".join(f"{k} ({v})" for k, v in missing.items()))
    for part, title in (("both", "Forward and backward"), ("forward", "Forward")):
        parts.append(f"{title}:\n\n" + _layer_table(result, part))
    parts += [_kept_table(result), _depth_table(result), _model_table(result)]
    return "\n\n".join(parts) + "\n"


def _layer_table(result: dict[str, Any], part: str) -> str:
    names = [peers.LIMIT, *(name for name in peers.PEERS if name != "jaxbn")]
    rows = []
    for row in result["layers"]:
        over = row[part]["over_jaxbn"]
        cells = [
            "{:.2f} ({:.2f} to {:.2f})".format(*over[name]) if name in over else ""
            for name in names
        ]
        rows.append([row["dtype"], tuple(row["shape"]), *cells])
    for dtype in sorted({row["dtype"] for row in result["layers"]}, reverse=True):
        means = geometric_means(result, dtype, part)
        cells = [f"**{means[name]:.2f}**" if name in means else "" for name in names]
        rows.append([dtype, "geometric mean", *cells])
    return plotting.markdown(["dtype", "shape", *names], rows)


def _kept_table(result: dict[str, Any]) -> str:
    layers = list(result["kept"]["float32"])
    rows = [[dtype, *kept.values()] for dtype, kept in result["kept"].items()]
    return (
        "Kept for the backward pass of BN and ReLU, in sizes of the input, the ReLU's "
        "own included:\n\n" + plotting.markdown(["dtype", *layers], rows)
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
        "Seconds to trace + compile the gradient of Dense, BN and ReLU:\n\n"
        + plotting.markdown(header, rows)
    )


def _model_table(result: dict[str, Any]) -> str:
    header = ["model", "normalisation", "time over jaxbn's", "temporary MB",
              "accessed MB", "compile s"]  # fmt: skip
    rows = [
        [
            model, name, "{:.2f} ({:.2f} to {:.2f})".format(*row["over_jaxbn"]),
            row["temporary_MB"], row["accessed_MB"], row["compile_s"],
        ]
        for model, by_norm in result["models"].items()
        for name, row in by_norm.items()
    ]  # fmt: skip
    return "Training steps, eight images of 64x64:\n\n" + plotting.markdown(
        header, rows
    )
