"""The figure of the study: accuracy by network and statistics of inference."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.practice.domains import report


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws the mean over seeds in both domains."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    rows = [
        (name, way) for name in result["networks"] for way in report.ways(result, name)
    ]
    for domain, label in enumerate(("images", "negatives")):
        values = [report.accuracy(result, *row, domain).mean() for row in rows]
        places = np.arange(len(rows)) + 0.4 * (domain - 0.5)
        axes.barh(places, values, 0.38, label=label)
    axes.set_yticks(range(len(rows)), [f"{name}\n{way}" for name, way in rows])
    axes.tick_params(labelsize=7.5)
    axes.invert_yaxis()
    about = result["options"]
    axes.set_xlabel("test accuracy")
    axes.set_title(
        f"{about['dataset']}, {about['steps']:,} steps, mean of {about['seeds']} seeds",
        fontsize=10,
    )
    figure.legend(fontsize=8, loc="outside right upper")
    return figure
