"""The table and the verdict of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

CLEAR = 0.01
"""Accuracies are level if they differ by at most this, a point."""
LOST = 0.1
"""Statistics that do not fit lose more than this."""
TRAINED, DOMAIN = "as trained", "of the domain"


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join([verdicts.expected(statements(result)), _accuracy(result)])


def statements(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns each expected statement, and True if the result confirms it."""

    def mean(name: str, way: str = TRAINED) -> float:
        return float(np.mean([accuracy(result, name, way, d).mean() for d in (0, 1)]))

    def new_domain(way: str) -> float:
        return float(accuracy(result, "one domain only", way, 1).mean())

    mixed, single = "mixed batches, one BN", "batches of a domain, one BN"
    fitting = [
        mean(mixed), mean(single, DOMAIN), mean("shared scale and bias"),
        mean("all apart"),
    ]  # fmt: skip
    return {
        "training and inference that fit are level": (
            max(fitting) - min(fitting) <= CLEAR
        ),
        "trained on mixed batches, statistics of the domain fail": (
            mean(mixed) - mean(mixed, DOMAIN) > LOST
        ),
        "trained on batches of a domain, mixed statistics fail": (
            mean(single, DOMAIN) - mean(single) > LOST
        ),
        "statistics of a domain that is new help": (
            new_domain(DOMAIN) - new_domain(TRAINED) > CLEAR
        ),
    }


def verdict(result: Mapping[str, Any]) -> str:
    """Returns the verdict in words."""
    return verdicts.of(*statements(result).values())


def accuracy(result: Mapping[str, Any], name: str, way: str, domain: int) -> np.ndarray:
    """Returns the test accuracy in a domain at the chosen learning rate, `[seeds]`.

    The rate is the one that is best on the validation part, on the domains of training,
    for the better of the statistics of inference.
    """
    found = result["networks"][name]
    domains = (0,) if name == "one domain only" else (0, 1)
    by_way = [
        np.mean(
            [np.array(found[f"validation: {each}: {d}"]).mean(0) for d in domains], 0
        )
        for each in ways(result, name)
    ]
    chosen = int(np.max(by_way, 0).argmax())
    return np.array(found[f"test: {way}: {domain}"], np.float64)[:, chosen]


def ways(result: Mapping[str, Any], name: str) -> list[str]:
    """Returns the statistics of inference that a network was evaluated with."""
    found = result["networks"][name]
    return [way for way in (TRAINED, DOMAIN) if f"test: {way}: 0" in found]


def _accuracy(result: Mapping[str, Any]) -> str:
    rows = [
        [name, way, *(output.spread(accuracy(result, name, way, d)) for d in (0, 1))]
        for name in result["networks"]
        for way in ways(result, name)
    ]
    about = result["options"]
    return (
        f"Test accuracy after {about['steps']:,} steps on {about['examples']:,} images "
        f"of {about['dataset']}, mean of {about['seeds']} seeds and half their range. "
        "Statistics of inference: running ones of training, or those of 2,000 training "
        "images of the domain.\n\n"
        + output.markdown(
            ["trained with", "statistics of inference", "images", "negatives"], rows
        )
    )
