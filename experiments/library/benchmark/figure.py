"""The figures of the benchmark: layers, scaling and memory."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.library.benchmark import peers

_COLORS = {name: f"C{i}" for i, name in enumerate(peers.PEERS)} | {peers.LIMIT: "black"}


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Draws the figures of the parts that were measured, by their suffixes."""
    return {
        suffix: function(result)
        for suffix, (needed, function) in _ALL.items()
        if needed <= set(result)
    }


def layers(result: Mapping[str, Any]) -> Figure:
    """Draws times relative to jaxbn for every shape, forward and backward."""
    dtypes = sorted(result["layers"], reverse=True)
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=(13, 4), sharey=True, layout="constrained"
    )
    for panel, dtype in zip(np.atleast_1d(axes), dtypes, strict=True):
        rows = result["layers"][dtype]
        names = list(rows[0]["both"]["over_jaxbn"])
        for i, name in enumerate(names):
            median, low, high = np.array(
                [row["both"]["over_jaxbn"][name] for row in rows]
            ).T
            panel.errorbar(
                np.arange(len(rows)) + (i - (len(names) - 1) / 2) / 9,
                median,
                [median - low, high - median],
                fmt="o",
                color=_COLORS[name],
                label=name,
            )
        panel.axhline(1, color="tab:gray", lw=1)
        labels = ["x".join(map(str, row["shape"])) for row in rows]
        panel.set_xticks(range(len(rows)), labels, rotation=30, fontsize=7)
        panel.set(title=f"{dtype}, forward and backward", yscale="log")
    np.atleast_1d(axes)[0].set_ylabel("time over jaxbn's")
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure


def scaling(result: Mapping[str, Any]) -> Figure:
    """Draws times by elements, channels and devices, and compilation by depth."""
    figure, (left, middle, right, last) = plt.subplots(
        1, 4, figsize=(16, 3.8), layout="constrained"
    )
    for axes, key, xlabel in (
        (left, "elements", "elements, 64 channels"),
        (middle, "channels", "channels, a million elements"),
    ):
        rows = result["sizes"][key]
        shapes = np.array([row["shape"] for row in rows])
        x = shapes.prod(1) if key == "elements" else shapes[:, 1]
        ours = np.array([row["both"]["jaxbn_ms"] for row in rows])
        axes.loglog(x, ours, "o-", color=_COLORS["jaxbn"], label="jaxbn")
        for name in rows[0]["both"]["over_jaxbn"]:
            over = np.array([row["both"]["over_jaxbn"][name][0] for row in rows])
            axes.loglog(x, ours * over, "o-", color=_COLORS[name], label=name)
        axes.set(xlabel=xlabel, ylabel="ms, forward and backward")
    depths = sorted(result["depth"], key=int)
    for name in result["depth"][depths[0]]:
        times = [sum(result["depth"][depth][name].values()) for depth in depths]
        layers = [int(depth) for depth in depths]
        right.loglog(layers, times, "o-", color=_COLORS[name], label=name)
    right.set(xlabel="layers", ylabel="s to trace and compile")
    for style, line in (("jit", "-"), ("shard_map", "--")):
        rows = [row for row in result["devices"]["rows"] if row["style"] == style]
        devices = [row["devices"] for row in rows]
        ours = np.array([row["jaxbn_ms"] for row in rows])
        flax = ours * np.array([row["over_jaxbn"][0] for row in rows])
        for name, ms in (("jaxbn", ours), ("flax.linen", flax)):
            color, label = _COLORS[name], f"{name}, {style}"
            last.plot(devices, ms, "o" + line, color=color, label=label)
    last.set(xlabel="devices, of one processor", ylabel="ms, forward and backward")
    last.set_ylim(bottom=0)
    for axes in (left, middle, right, last):
        axes.legend(fontsize=7, handlelength=4)
    return figure


def memory(result: Mapping[str, Any]) -> Figure:
    """Draws the peak memory per layer of 50 layers, written out and scanned."""
    rows = sorted(result["memory"].items(), key=lambda item: -item[1]["scanned"])
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for i, form in enumerate(("written out", "scanned")):
        values = [row[form] for _, row in rows]
        axes.bar(np.arange(len(rows)) + 0.4 * i - 0.2, values, 0.4, label=form)
    axes.set_xticks(range(len(rows)), [name for name, _ in rows])
    axes.set(title="peak of a gradient", ylabel="activations per layer")
    axes.legend()
    return figure


_ALL = {
    "_layers": ({"layers"}, layers),
    "_scaling": ({"sizes", "depth", "devices"}, scaling),
    "_memory": ({"memory"}, memory),
}
"""For each suffix the parts of the JSON that it needs, and its function."""
