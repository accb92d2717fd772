"""The table of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import curves, output
from experiments.networks import inception_paper as paper


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    config, runs = result["config"], result["runs"]
    baseline = runs.get("Inception")
    target = max(baseline["accuracy"]) if baseline else None
    rows = []
    for name, run in runs.items():
        steps = None
        if target is not None:
            steps = curves.first(run["step"], np.array(run["accuracy"]), target)
        theirs = paper.STEPS.get(name)
        rows.append(
            [
                name,
                f"{run['learning_rate']:g}",
                "-" if steps is None else f"{steps:,}",
                f"{max(run['accuracy']):.4f}",
                "-" if theirs is None else f"{theirs:.1f} million",
                f"{paper.BEST[name]:.3f}",
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
