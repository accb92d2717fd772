"""The tables of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts
from experiments.practice.sensitivity import grids

LEARNING_RATE = {"with_bn": "with BN", "without_bn": "without BN"}
INITIALISATION = {
    "with_bn": "with BN",
    "hidden_only": "with BN, softmax as usual",
    "without_bn": "without BN",
}

# "Higher learning rates" means at least one step of the grid, a factor of 3.2.
_HIGHER = 3.0
# "Less careful" means that a decade more of scales works.
_MORE = 1.0


def learning_rate(result: Mapping[str, Any]) -> str:
    """Returns the result by learning rate as Markdown."""
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
    return "\n\n".join(
        [verdict, _ranges(found), grids.table(result, LEARNING_RATE, words)]
    )


def initialisation(result: Mapping[str, Any]) -> str:
    """Returns the result by initial weights as Markdown."""
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
        for name, label in INITIALISATION.items():
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
    return "\n\n".join([verdict, decades, grids.table(result, INITIALISATION, words)])


def _ratio(found: Mapping[str, Any]) -> float:
    """Returns the ratio of the highest working rates with and without BN.

    It is 0 if no rate works with BN.
    """
    with_bn, without_bn = (found[name]["highest"] for name in LEARNING_RATE)
    if with_bn is None:
        return 0.0
    return float("inf") if without_bn is None else with_bn / without_bn


def _found(result: Mapping[str, Any], activation: str) -> dict[str, dict[str, Any]]:
    """Returns for each network the rates at which it works and diverges."""
    networks, values = result["accuracy"][activation], np.array(result["values"])
    working = grids.works(networks)
    found = {}
    for name in LEARNING_RATE:
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
        for name, label in LEARNING_RATE.items():
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
