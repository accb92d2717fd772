"""The figure of the study: accuracy by the scale of the initial weights."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.networks import grids

_STYLES = {
    "with_bn": ("with BN", "tab:blue", "-"),
    "hidden_only": ("with BN, softmax as usual", "tab:green", "--"),
    "without_bn": ("without BN", "tab:orange", "-"),
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws a panel per activation."""
    return grids.draw(result, _STYLES, "standard deviation of the initial weights")
