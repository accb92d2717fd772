"""The tables and the verdict of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import curves, output, verdicts

ROUNDING = 1e-4
"""A smaller relative change of the logits is due to the rounding of float32."""
KINDS = ("none", "BN over padding", "masked BN", "Layer Norm")
_NETWORKS = ("feed-forward", "recurrent")


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join([verdicts.expected(statements(result)), _networks(result)])


def statements(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns each expected statement, and True if the result confirms it.

    The values are means over seeds and over the last quarter of the records.
    """
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
    """Returns the verdict in words."""
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
    """Returns the mean over the last quarter of the records, `[seeds]`.

    Values that are not finite count as 0.
    """
    values = np.array(result["networks"][name][quantity], np.float64)
    return curves.quarters(np.nan_to_num(values))[1]
