"""The tables of the study, from its JSON alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import output, verdicts
from experiments.learning_rate import figure
from experiments.networks import grids

LABELS = {"with_bn": "with BN", "without_bn": "without BN"}

# "Higher learning rates" means at least one step of the grid, a factor of 3.2.
_HIGHER = 3.0


def write(path: pathlib.Path) -> str:
    """Writes `.md` and `.png` beside the JSON at `path` and returns the text."""
    return output.write_pages(path, table, {"": figure.draw})


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    found = {name: _found(result, name) for name in result["accuracy"]}
    higher = [_ratio(each) >= _HIGHER for each in found.values()]
    wider = [
        each["with_bn"]["decades"] > each["without_bn"]["decades"]
        for each in found.values()
    ]
    better = [
        each["with_bn"]["best"] >= each["without_bn"]["best"] for each in found.values()
    ]
    verdict = verdicts.table(
        {
            "BN enables higher learning rates": higher,
            "BN trains over more decades of them": wider,
            "at its best rate the network with BN is at least as accurate": better,
        }
    )
    seeds = result["config"]["seeds"]
    words = (
        f"Test accuracy after {result['config']['steps']} steps by learning rate, mean "
        f"of {seeds} seeds"
    )
    return "\n\n".join([verdict, _ranges(found), grids.table(result, LABELS, words)])


def _ratio(found: Mapping[str, Any]) -> float:
    """Returns the ratio of the highest working rates with and without BN.

    It is 0 if no rate works with BN.
    """
    with_bn, without_bn = (found[name]["highest"] for name in LABELS)
    if with_bn is None:
        return 0.0
    return float("inf") if without_bn is None else with_bn / without_bn


def _found(result: Mapping[str, Any], activation: str) -> dict[str, dict[str, Any]]:
    """Returns for each network the rates at which it works and diverges."""
    networks, values = result["accuracy"][activation], np.array(result["values"])
    working = grids.works(networks)
    found = {}
    for name in LABELS:
        accuracy = np.array(networks[name], float)
        lost = values[np.isnan(accuracy).any(0)]
        mine = values[working[name]]
        found[name] = {
            "best": float(grids.mean(networks[name]).max()),
            "best_rate": float(values[grids.mean(networks[name]).argmax()]),
            "lowest": float(mine[0]) if len(mine) else None,
            "highest": float(mine[-1]) if len(mine) else None,
            "decades": grids.decades(result["values"], working[name]),
            "diverged": float(lost[0]) if len(lost) else None,
        }
    return found


def _ranges(found: Mapping[str, Any]) -> str:
    rows = []
    for activation, networks in found.items():
        for name, label in LABELS.items():
            row = networks[name]
            works = "nowhere"
            if row["lowest"] is not None:
                works = f"{row['lowest']:.2g} to {row['highest']:.2g}"
            lost = "never" if row["diverged"] is None else f"{row['diverged']:.2g}"
            rows.append([activation, label, f"{row['best']:.3f}",
                         f"{row['best_rate']:.2g}", works, f"{row['decades']:g}", lost]
            )  # fmt: skip
    header = ["activation", "network", "best accuracy", "at rate", "works from",
              "decades", "diverges first at"]  # fmt: skip
    return (
        f"Where a network works: within {grids.TOLERANCE:g} of the best accuracy that "
        "was found for its activation:\n\n" + output.markdown(header, rows)
    )
