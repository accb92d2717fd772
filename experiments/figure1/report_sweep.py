"""The table of the sweep, from its JSON alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

from experiments import output
from experiments.figure1 import paper
from experiments.networks import mlp


def write(path: pathlib.Path) -> str:
    """Writes `figure1_sweep.md` beside the JSON at `path` and returns the text."""
    return output.write_pages(path, table, {})


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
