"""The figures of the study: accuracy by learning rate, and by initial weights."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.practice.sensitivity import grids

_WITH = ("with BN", "tab:blue", "-")
_WITHOUT = ("without BN", "tab:orange", "-")
_HIDDEN_ONLY = ("with BN, softmax as usual", "tab:green", "--")


def learning_rate(result: Mapping[str, Any]) -> Figure:
    """Draws a panel per activation, by learning rate."""
    styles = {"with_bn": _WITH, "without_bn": _WITHOUT}
    return grids.draw(result, styles, "learning rate")


def initialisation(result: Mapping[str, Any]) -> Figure:
    """Draws a panel per activation, by the scale of the initial weights."""
    styles = {"with_bn": _WITH, "hidden_only": _HIDDEN_ONLY, "without_bn": _WITHOUT}
    return grids.draw(result, styles, "standard deviation of the initial weights")
