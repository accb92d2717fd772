"""The table of the study, made from its JSON alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import output
from experiments.imagenet import figure

PAPER = {
    "Inception": (31.0e6, 0.722),
    "BN-Baseline": (13.3e6, 0.727),
    "BN-x5": (2.1e6, 0.730),
    "BN-x30": (2.7e6, 0.748),
    "BN-x5-Sigmoid": (None, 0.698),
}
"""Figure 3: steps to 72.2 %, maximum accuracy; sigmoids without BN stay at .001."""


def write(path: pathlib.Path) -> str:
    """Writes `.md` and `.png` beside the JSON at `path`; returns the text."""
    return output.write_pages(path, table, {"": figure.draw})


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    config, runs = result["config"], result["runs"]
    baseline = runs.get("Inception")
    target = max(baseline["accuracy"]) if baseline else None
    rows = []
    for name, run in runs.items():
        steps = None if target is None else first(run, target)
        paper_steps, paper_best = PAPER.get(name, (None, 0.001))
        rows.append(
            [
                name,
                f"{run['learning_rate']:g}",
                "-" if steps is None else f"{steps:,}",
                f"{max(run['accuracy']):.4f}",
                "-" if paper_steps is None else f"{paper_steps / 1e6:.1f} million",
                f"{paper_best:.3f}",
            ]
        )
    header = ["configuration", "learning rate", "steps to Inception's best",
              "maximum accuracy", "paper's steps", "paper's maximum"]  # fmt: skip
    return (
        f"{config['dataset']}: {result['images']['train']:,} images for training, "
        f"{result['images']['validation']:,} for validation, {config['size']} pixels, "
        f"{config['width']:g} times the channels of Figure 5, {config['steps']:,} "
        f"mini-batches of {config['batch_size']} on {result['devices']} device(s):\n\n"
        + output.markdown(header, rows)
    )


def first(run: Mapping[str, Any], target: float) -> int | None:
    """The first recorded step at which the accuracy is at least `target`.

    Example:
      >>> first({"step": [10, 20, 30], "accuracy": [0.1, 0.5, 0.4]}, 0.4)
      20
    """
    reached = np.flatnonzero(np.array(run["accuracy"]) >= target)
    return run["step"][reached[0]] if len(reached) else None
