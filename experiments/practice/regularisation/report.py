"""The tables and the verdict of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

NETWORKS = ("without BN", "BN")


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join([_verdict(result), _accuracies(result)])


def statements(result: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns each expected statement and the differences of accuracy, by seed.

    A positive difference confirms the statement. Seeds are compared in pairs, because
    the same seed gives the same initial weights and mini-batches.
    """
    dropout = result["options"]["dropout"]
    weight = result["options"]["l2"]
    off, most = dropout[0], dropout[-1]

    def best_gain(network: str) -> np.ndarray:
        """Returns the gain of the best dropout over none."""
        gains = [
            _seeds(result, network, dropout=rate) - _seeds(result, network)
            for rate in dropout
        ]
        return max(gains, key=np.mean)

    def cost(network: str) -> np.ndarray:
        """Returns the loss from mini-batches that always have the same examples."""
        return _seeds(result, network) - _seeds(result, network, batches="fixed")

    return {
        "without dropout, BN is more accurate": (
            _seeds(result, "BN") - _seeds(result, "without BN")
        ),
        "the best dropout brings less with BN": (
            best_gain("without BN") - best_gain("BN")
        ),
        f"with BN, dropout {off:.0%} is better than {most:.0%}": (
            _seeds(result, "BN") - _seeds(result, "BN", dropout=most)
        ),
        "with BN, a fifth of L2 is better than all of it": (
            _seeds(result, "BN", l2=weight / 5) - _seeds(result, "BN", l2=weight)
        ),
        "with BN, reshuffled batches are better than fixed ones": cost("BN"),
        "without BN, that brings less": cost("BN") - cost("without BN"),
    }


def verdict(result: Mapping[str, Any]) -> str:
    """Returns the verdict in words."""
    return verdicts.of(
        *(bool(found.min() > 0) for found in statements(result).values())
    )


def _verdict(result: Mapping[str, Any]) -> str:
    rows = [
        [words, _word(found), f"{100 * found.mean():+.2f}",
         f"{100 * found.min():+.2f} to {100 * found.max():+.2f}"]
        for words, found in statements(result).items()
    ]  # fmt: skip
    return f"Verdict: {verdict(result)}.\n\n" + output.markdown(
        ["expected", "found", "points of accuracy", "seeds"], rows
    )


def _word(found: np.ndarray) -> str:
    if found.min() > 0:
        return "yes"
    return "no" if found.mean() <= 0 else "not in every seed"


def _accuracies(result: Mapping[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        accuracy = np.array(row["accuracy"], np.float64)
        rows.append(
            [
                row["network"],
                f"{row['dropout']:.0%}",
                f"{row['l2']:g}",
                row["batches"],
                output.spread(accuracy),
                f"{np.mean(row['train_accuracy']):.4f}",
                f"{np.mean(np.array(row['loss'], np.float64)):.3f}",
            ]
        )
    about = result["options"]
    header = ["network", "dropout", "L2", "batches", "test accuracy",
              "training accuracy", "test loss"]  # fmt: skip
    return (
        f"After {about['steps']:,} steps on {about['examples']:,} images, mean of "
        f"{about['seeds']} seeds and half their range:\n\n"
        + output.markdown(header, rows)
    )


def _seeds(result: Mapping[str, Any], network: str, **wanted: Any) -> np.ndarray:
    """Returns the test accuracy by seed.

    Without `wanted`, the network has no other regularisation.
    """
    off = result["options"]["dropout"][0]
    usual = {"dropout": off, "l2": 0, "batches": "reshuffled"}
    return np.array(row_of(result, network, **(usual | wanted))["accuracy"])


def row_of(result: Mapping[str, Any], network: str, **wanted: Any) -> Mapping[str, Any]:
    """Returns the row of a network and its regularisation."""
    for row in result["rows"]:
        if row["network"] == network and all(row[k] == v for k, v in wanted.items()):
            return row
    raise KeyError((network, wanted))
