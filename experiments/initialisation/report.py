"""The tables of the study, from its JSON alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

from experiments import output, verdicts
from experiments.initialisation import figure
from experiments.networks import grids

LABELS = {
    "with_bn": "with BN",
    "hidden_only": "with BN, softmax as usual",
    "without_bn": "without BN",
}

# "Less careful" means that a decade more of scales works.
_MORE = 1.0


def write(path: pathlib.Path) -> str:
    """Writes `.md` and `.png` beside the JSON at `path` and returns the text."""
    return output.write_pages(path, table, {"": figure.draw})


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    found = {
        activation: grids.works(networks)
        for activation, networks in result["accuracy"].items()
    }
    covered = {
        activation: {
            name: grids.decades(result["values"], where)
            for name, where in networks.items()
        }
        for activation, networks in found.items()
    }
    less_careful = [
        each[name] >= each["without_bn"] + _MORE
        for each in covered.values()
        for name in ("with_bn", "hidden_only")
    ]
    any_scale = [
        bool(grids.learns(networks["hidden_only"]).all())
        for networks in result["accuracy"].values()
    ]
    verdict = verdicts.table(
        {
            "with BN one may be less careful about initial weights": less_careful,
            "with BN the network learns something from any scale of its hidden "
            "weights": any_scale,
        }
    )
    rows = []
    for activation, networks in result["accuracy"].items():
        for name, label in LABELS.items():
            best = grids.mean(networks[name]).max()
            learns = grids.decades(result["values"], grids.learns(networks[name]))
            rows.append(
                [activation, label, f"{best:.3f}", f"{covered[activation][name]:g}",
                 f"{learns:g}"]
            )  # fmt: skip
    header = ["activation", "network", "best accuracy", "decades near the best",
              f"decades above {grids.LEARNS:g}"]  # fmt: skip
    decades = (
        f"Decades of initial scales with an accuracy within {grids.TOLERANCE:g} of the "
        f"best that was found for the activation, and above {grids.LEARNS:g}:\n\n"
        + output.markdown(header, rows)
    )
    words = (
        f"Test accuracy after {result['config']['steps']} steps by standard deviation "
        f"of the initial weights, mean of {result['config']['seeds']} seeds"
    )
    return "\n\n".join([verdict, decades, grids.table(result, LABELS, words)])
