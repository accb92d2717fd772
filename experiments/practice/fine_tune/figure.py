"""The figure of the study: accuracy after each stage, and the shipped models."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

_LABELS = {
    "imported": "imported",
    "recalibrated": "recalibrated,\nno labels",
    "statistics frozen as imported": "tuned, frozen,\nnot recalibrated",
    "not frozen": "tuned,\nnot frozen",
    "recalibrated and frozen": "tuned, frozen,\nrecalibrated",
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws accuracy by stage (left, a dot per seed) and the shipped models."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 3.8), width_ratios=(3, 2), layout="constrained"
    )
    for place, name in enumerate(_LABELS):
        values = result["accuracies"][name]
        color = "tab:blue" if name == "recalibrated and frozen" else "tab:gray"
        left.bar(place, sum(values) / len(values), color=color, alpha=0.5)
        left.plot([place] * len(values), values, "o", color=color, markersize=4)
    shipped = result["shipped"]
    place = len(_LABELS)
    for name in ("folded", "folded and exported"):
        left.bar(place, shipped[name]["accuracy"], color="tab:green", alpha=0.5)
        place += 1
    labels = [*_LABELS.values(), "folded", "folded,\nexported"]
    left.set_xticks(range(len(labels)), labels, fontsize=7)
    left.set(ylabel="accuracy on new test images", ylim=(0, 1))
    left.set_title("What does each stage bring?", fontsize=10)

    names = list(shipped)
    places = range(len(names))
    sizes = [shipped[name]["kilobytes"] for name in names]
    times = [shipped[name]["over_as_it_is"][0] for name in names]
    right.bar(
        [p - 0.2 for p in places], [s / sizes[0] for s in sizes], 0.4, label="size"
    )
    right.bar([p + 0.2 for p in places], times, 0.4, label="time")
    right.axhline(1, color="black", linewidth=0.5)
    right.set_xticks(places, [n.replace(" and ", ",\n") for n in names], fontsize=8)
    right.set_title("Shipped, over the model as it is", fontsize=10)
    right.legend(fontsize=8)
    return figure
