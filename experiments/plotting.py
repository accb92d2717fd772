"""Figures and JSON files of the studies, written whole or not at all."""

import io
import json
import os
import pathlib
import tempfile
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments import paper

_COLORS = {"with_bn": "tab:blue", "without_bn": "tab:orange"}
_LABELS = {"with_bn": "with BN", "without_bn": "without BN"}


def check_folder(path: pathlib.Path) -> None:
    """Makes a folder for results.

    Raises:
      ValueError: if there cannot be one, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(
            f"`out` must be a folder that can be written, got {path}: {error}."
        ) from error


def write_json(path: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes `result` with sorted keys: equal results give equal files."""
    write_text(path, json.dumps(result, sort_keys=True, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` as UTF-8."""
    _write(path, text.encode())


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def figure1(path: pathlib.Path, result: dict[str, Any]) -> None:
    """Panels (a), (b) and (c) of the paper's Figure 1, next to the paper's own curves.

    The paper's curves are dashed and labelled as such, and drawn only for MNIST.
    """
    steps = np.array(result["step"])
    with_paper = result["config"]["dataset"] == "mnist"
    figure, (left, *right) = plt.subplots(
        1, 3, figsize=(13, 3.8), width_ratios=(5, 4, 4)
    )
    for network, color in _COLORS.items():
        accuracy = np.array(result["accuracy"][network])
        label = f"ours, {_LABELS[network]}"
        left.plot(steps, accuracy.mean(1), color=color, label=label)
        left.fill_between(
            steps, accuracy.min(1), accuracy.max(1), color=color, alpha=0.25, lw=0
        )
        if with_paper:
            values = paper.ACCURACY[network]
            left.plot(
                paper.ACCURACY_STEPS[: len(values)],
                values,
                "--",
                color=color,
                marker=".",
                label=f"the paper's, {_LABELS[network]}",
            )
    left.set(title="(a) test accuracy", xlabel="step", ylim=(0.7, 1.0))
    left.legend(loc="lower right")
    for axes, network, letter in zip(
        right, ("without_bn", "with_bn"), "bc", strict=True
    ):
        traces = np.array(result["percentiles"][network])
        axes.fill_between(
            steps, traces[:, 0], traces[:, 2], color="tab:gray", alpha=0.3
        )
        axes.plot(steps, traces, color="black", lw=1, label=["ours", None, None])
        if with_paper:
            for values in paper.TRACES[network]:
                axes.plot(paper.PERCENTILE_STEPS, values, "--", color="tab:red", lw=1)
            axes.plot([], [], "--", color="tab:red", lw=1, label="the paper's")
            axes.legend(loc="upper center", ncols=2)
        percentiles = ", ".join(str(p) for p in paper.PERCENTILES)
        axes.set(
            title=f"({letter}) input of a sigmoid, {_LABELS[network]}",
            xlabel="step",
            ylabel=f"percentiles {percentiles}" if letter == "b" else None,
            ylim=(-3, 3.2),
        )
    seeds = result["config"]["seeds"]
    figure.suptitle(
        f"{result['config']['dataset']}, {seeds} seed{'s' if seeds > 1 else ''}",
        fontsize=10,
    )
    figure.tight_layout()
    save(path, figure)


def sync_cost(path: pathlib.Path, result: dict[str, Any]) -> None:
    """Predicted cost and share of a step, and predicted against published steps."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4))
    colors = {"TPU v3": "tab:blue", "GPU, nodes of 8": "tab:green"}
    groups = np.array(result["groups"][1:])
    for network, style in zip(result["milliseconds"], ("-", "--"), strict=True):
        for hardware, values in result["milliseconds"][network].items():
            added = np.array(values[1:])
            share = added / (added + result["unsynchronised"][network][hardware]["ms"])
            line = {"color": colors[hardware], "label": f"{network}, {hardware}"}
            left.loglog(groups, added, style, **line)
            middle.semilogx(groups, 100 * share, style, **line)
    for axes, title in ((left, "ms added to a step"), (middle, "% of the step")):
        axes.set(title=f"{title} (model)", xlabel="devices that share statistics")
    left.legend()
    limits = [10, 200]
    right.loglog(limits, limits, color="tab:gray", lw=1)
    for i, row in enumerate(result["mlperf"]["runs"]):
        right.plot(
            row["published_ms"],
            row["predicted_ms"],
            "o" if row["fitted"] else "^",
            color="tab:blue" if row["fitted"] else "tab:red",
        )
        right.annotate(
            f"{row['run']}, {row['cores']} cores, groups of {row['group']}",
            (row["published_ms"], row["predicted_ms"]),
            xytext=(8, -10 if i % 2 else 4),
            textcoords="offset points",
            fontsize=7,
        )
    right.set_title("ResNet-50 on TPU v3, ms per step: fitted (o), predicted (^)")
    right.set(xlabel="published (MLPerf)", ylabel="model", xlim=(10, 400))
    figure.tight_layout()
    save(path, figure)


def save(path: pathlib.Path, figure: Any) -> None:
    """As PNG, in one step; closes the figure."""
    buffer = io.BytesIO()
    # No version in the file: equal results give equal files.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    _write(path, buffer.getvalue())


def _write(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
