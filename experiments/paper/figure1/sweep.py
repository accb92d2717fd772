"""The settings that the paper leaves open in Figure 1, and their rows in the sweep."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output
from experiments.networks import mlp
from experiments.paper.figure1 import paper, report

# Every row changes these settings.
BASE = {"learning_rate": 0.15, "init_std": 0.045, "decay": 1.0, "ink": 128}
# The first rows change learning rate and initial scale. The next ones change one
# setting at the pair nearest to the paper, or several that come nearer.
CHANGES: tuple[dict[str, Any], ...] = (
    *(
        {"learning_rate": rate, "init_std": std}
        for rate, std in (
            (0.05, 0.1),
            (0.1, 0.05),
            (0.1, 0.06),
            (0.12, 0.05),
            (0.15, 0.04),
            (0.15, 0.05),
            (0.2, 0.04),
            (0.3, 0.03),
        )
    ),
    {},
    {"replacement": True},
    {"learning_rate": 0.015, "sgd_momentum": 0.9},
    {"exact_population": True},
    {"bn_momentum": 0.9},
    {"init": "uniform"},
    {"init_per_layer": True},
    {"init_per_layer": True, "init_std": 0.03},
    {"decay": 0.3},
    {"decay": 0.1},
    {"decay": 0.1, "learning_rate": 0.2},
    {"decay": 0.1, "ink": 64},
    {"decay": 0.1, "ink": 64, "init_std": 0.042},
    {"decay": 0.3, "ink": 64, "init_std": 0.042},
    {"decay": 0.1, "learning_rate": 0.3, "init_std": 0.03},
    {"decay": 0.01, "learning_rate": 0.3, "init_std": 0.04},
    {"ink": 1},
    {"ink": 64},
)


def make_row(
    change: dict[str, Any],
    config: dict[str, Any],
    steps: np.ndarray,
    records: report.Records,
) -> dict[str, Any]:
    """Returns the comparison of one configuration with the paper.

    Args:
      change: the settings that differ from `BASE`.
      config: the options that decided the numbers.
      steps: the steps of the records, `[records]`.
      records: the records of both networks.
    """
    mean = {n: records[f"{n}/accuracy"].mean(1) for n in mlp.NETWORKS}
    return {
        "change": change,
        "config": config,
        "accuracy": {
            network: [
                round(float(accuracy[steps == step][0]), 4)
                for step in paper.ACCURACY_STEPS
                if step <= steps[-1]
            ]
            for network, accuracy in mean.items()
        },
        "distance_to_paper": {
            network: report.distance_to_paper(network, steps, accuracy)
            for network, accuracy in mean.items()
        },
        "with_bn_above": bool(np.all(mean["with_bn"] > mean["without_bn"])),
    }


def table(result: Mapping[str, Any]) -> str:
    """Returns the rows as Markdown."""
    steps = ("4K", "8K", "12K", "24K", "44K")
    at = [paper.ACCURACY_STEPS.index(int(step[:-1]) * 1000) for step in steps]
    header = ["configuration", f"with BN at {' / '.join(steps)}", "without BN",
              "distance with", "distance without", "BN above everywhere"]  # fmt: skip

    def accuracies(values) -> str:
        return " ".join(f"{values[i]:.3f}" for i in at if i < len(values))

    curves = [accuracies(paper.ACCURACY[network]) for network in mlp.NETWORKS]
    lines = [["the paper's curves", *curves, "", "", ""]]
    for row in result["rows"]:
        hp = row["config"]["hp"]
        names = dict.fromkeys(("learning_rate", "init_std", *row["change"]))
        name = ", ".join(f"{key} {hp[key]}" for key in names)
        cells = [accuracies(row["accuracy"][network]) for network in mlp.NETWORKS]
        cells += [f"{row['distance_to_paper'][network]}" for network in mlp.NETWORKS]
        lines.append([name, *cells, "yes" if row["with_bn_above"] else "no"])
    return output.markdown(header, lines)
