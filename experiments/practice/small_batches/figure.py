"""The figure of the study: accuracy by batch size."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.practice.small_batches import report


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws the mean over seeds, and their range, of every layer and size."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    kinds, sizes = ["BN", *report.RELATIVES], report.sizes(result)
    width = 0.8 / len(sizes)
    for place, size in enumerate(sizes):
        values = np.array([report.seeds(result, size, kind) for kind in kinds])
        mean = values.mean(1)
        ends = np.abs(np.stack([values.min(1), values.max(1)]) - mean)
        at = np.arange(len(kinds)) + width * (place - (len(sizes) - 1) / 2)
        axes.bar(at, mean, width, yerr=ends, label=f"batches of {size}", capsize=2)
    axes.set_xticks(range(len(kinds)), kinds)
    low = min(report.seeds(result, size, k).min() for size in sizes for k in kinds)
    axes.set_ylim(max(0, low - 0.05), None)
    axes.set_ylabel("test accuracy")
    about = result["options"]
    axes.set_title(
        f"{about['dataset']}, {about['examples']:,} images, {about['epochs']} epochs, "
        f"mean and range of {about['seeds']} seeds",
        fontsize=10,
    )
    axes.legend(fontsize=8, loc="lower right")
    return figure
