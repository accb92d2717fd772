"""The figure of the study: accuracy and learning curves of each policy."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.framework import curves

_STYLES = {
    "exact": ("black", "-"),
    "groups of half": ("tab:purple", ":"),
    "half of the examples": ("tab:brown", ":"),
    "every 8th step": ("tab:cyan", ":"),
    "every 8th step, frozen": ("tab:olive", ":"),
    "frozen after half": ("tab:gray", ":"),
    "local": ("tab:red", "-"),
    "stale, forward": ("tab:orange", "--"),
    "stale, half": ("tab:green", "--"),
    "stale": ("tab:blue", "-"),
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws accuracy by examples per worker (left) and learning curves (the others)."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    settings = {
        int(name.split(" x ")[1]): found
        for name, found in result["parts"]["examples"].items()
    }
    settings = dict(sorted(settings.items()))
    sizes = list(settings)
    for policy, (color, line) in _STYLES.items():
        known = [(s, f[policy]) for s, f in zip(sizes, settings.values(), strict=True)
                 if policy in f]  # fmt: skip
        if known:
            ends = np.array(
                [np.array(each["accuracy"][-1], float) for _, each in known]
            )
            panels[0].plot(
                [s for s, _ in known], ends.mean(1), line, marker="o", markersize=3,
                color=color, label=policy,
            )  # fmt: skip
    panels[0].set_xscale("log", base=2)
    panels[0].set_xticks(sizes, [str(size) for size in sizes])
    panels[0].set_xlabel(f"examples per worker, {result['options']['workers']} workers")
    panels[0].set_ylabel("test accuracy at the end")
    panels[0].set_title("shuffled shards", fontsize=10)
    panels[0].legend(fontsize=7)
    few = result["options"]["usual"]
    for axes, part, title in (
        (panels[1], "examples", "shuffled shards"),
        (panels[2], "sorted", "shards sorted by label"),
    ):
        found = next(
            found
            for name, found in result["parts"][part].items()
            if name.split(",")[0].endswith(f" x {few}")
        )
        for policy, (color, line) in _STYLES.items():
            if policy in found:
                curves.draw(
                    axes, result["steps"], found[policy]["accuracy"], line, color=color
                )
        axes.set_xlabel("step")
        axes.set_title(f"{title}, {few} examples per worker", fontsize=10)
    return figure
