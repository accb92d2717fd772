"""The figure of the study: measured steps by policy, and modelled shares."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLORS = {
    "Exact": "tab:red",
    "Group": "tab:orange",
    "Group, apart": "tab:purple",
    "Periodic": "tab:brown",
    "Local": "tab:gray",
    "Stale": "tab:blue",
}
_NAMES = {"Group": "Group(8)", "Group, apart": "Group(8), own collectives",
          "Periodic": "Periodic(8)", "Exact": "Exact, Sampled"}  # fmt: skip
_ORDER = ("Exact", "Group(2)", "Sampled(.5)", "Periodic(8)", "FrozenAfter(0)", "Local",
          "Stale, forward", "Stale")  # fmt: skip
_LEAST = 1e-3  # The lowest share that is drawn, in per cent.


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws measured steps relative to no synchronisation, and modelled shares."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(13, 3.8), layout="constrained"
    )
    _measured(left, result["measured"])
    for axes, hardware in ((middle, "TPU v3"), (right, "GPU, nodes of 8")):
        _modelled(axes, result["modelled"], hardware)
    middle.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 0.06))
    middle.set_ylabel("% of a ResNet-50 step (model)")
    return figure


def _measured(axes: Axes, measured: Mapping[str, Any]) -> None:
    names = [name for name in _ORDER if name in measured["eight devices"]]
    places = np.arange(len(names))[::-1]
    for part, shift, color in (
        ("eight devices", 0.2, "tab:green"),
        ("two processes", -0.2, "tab:blue"),
    ):
        rows = measured[part]
        for name, place in zip(names, places, strict=True):
            if name not in rows:
                continue
            ratio = rows[name]["over_none"]
            axes.errorbar(
                ratio["median"],
                place + shift,
                xerr=[
                    [ratio["median"] - ratio["low"]],
                    [ratio["high"] - ratio["median"]],
                ],
                fmt="o",
                color=color,
                label=part if name == names[0] else None,
            )
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_title("measured: step over one without synchronisation", fontsize=9)
    axes.legend(fontsize=7, loc="lower left")


def _modelled(axes: Axes, model: Mapping[str, Any], hardware: str) -> None:
    part = model["networks"]["ResNet-50"]["hardware"][hardware]
    for policy, color in _COLORS.items():
        added = np.array(part["added_ms"][policy])
        share = 100 * added / (added + part["step_ms"])
        axes.loglog(
            model["devices"],
            np.maximum(share, _LEAST),
            color=color,
            label=_NAMES.get(policy, policy),
        )
    axes.axhline(1, color="black", lw=0.8, ls=":")
    axes.set_title(f"modelled: spent on statistics, {hardware}", fontsize=9)
    axes.set_xlabel("devices")
