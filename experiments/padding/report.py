"""The tables of the study and its verdict, made from its JSON alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import output, records, verdicts
from experiments.padding import figure

ROUNDING = 1e-4
"""A smaller relative change of the logits is that of float32."""
KINDS = ("none", "BN over padding", "masked BN", "Layer Norm")
_NETWORKS = ("feed-forward", "recurrent")


def write(path: pathlib.Path) -> str:
    """Writes `.md` and `.png` beside the JSON at `path`; returns the text."""
    return output.write_pages(path, table, {"": figure.draw})


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    return "\n\n".join([verdicts.expected(statements(result)), _networks(result)])


def statements(result: Mapping[str, Any]) -> dict[str, bool]:
    """What was expected, and whether it was found (means over seeds, last quarter)."""
    change = {name: _last(result, name, "change").mean() for name in result["networks"]}
    accuracy = {name: _last(result, name).mean() for name in result["networks"]}
    found = {
        "feed-forward: BN over padding depends on the padding": (
            change["feed-forward, BN over padding"] > ROUNDING
        ),
        "feed-forward: masked BN and Layer Norm do not": (
            max(change[f"feed-forward, {kind}"] for kind in KINDS[2:]) < ROUNDING
        ),
        "recurrent: with statistics per time step, none does": (
            max(change[f"recurrent, {kind}"] for kind in KINDS) < ROUNDING
        ),
    }
    for network in _NETWORKS:
        found[f"{network}: masked BN is more accurate than over padding"] = (
            accuracy[f"{network}, masked BN"] > accuracy[f"{network}, BN over padding"]
        )
    per_step, shared = (
        accuracy[f"recurrent, masked BN{suffix}"] for suffix in ("", ", shared")
    )
    found["recurrent: statistics per time step are better"] = per_step > shared
    return {words: bool(each) for words, each in found.items()}


def verdict(result: Mapping[str, Any]) -> str:
    """In plain words."""
    return verdicts.of(*statements(result).values())


def _networks(result: Mapping[str, Any]) -> str:
    names = [f"{network}, {kind}" for network in _NETWORKS for kind in KINDS]
    rows = [
        [
            name,
            output.spread(_last(result, name)),
            output.spread(_last(result, name, "short")),
            f"{_last(result, name, 'change').mean():.1e}",
        ]
        for name in [*names, "recurrent, masked BN, shared"]
    ]
    header = ["network", "test accuracy", "of the shorter half", "change by padding"]
    return (
        f"In the last quarter of {result['step'][-1]:,} steps; "
        f"{result['padding']:.0%} of the rows are padding. Mean of "
        f"{result['options']['seeds']} seeds and half their range. Change by padding: "
        "of the logits in training, where the same batch is padded to four times its "
        "length.\n\n" + output.markdown(header, rows)
    )


def _last(
    result: Mapping[str, Any], name: str, quantity: str = "accuracy"
) -> np.ndarray:
    """Over the last quarter of the records, `[seeds]`; 0 for what is not finite."""
    values = np.array(result["networks"][name][quantity], np.float64)
    return records.quarters(np.nan_to_num(values))[1]
