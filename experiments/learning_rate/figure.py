"""The figure of the study: accuracy by learning rate."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.networks import grids

_STYLES = {
    "with_bn": ("with BN", "tab:blue", "-"),
    "without_bn": ("without BN", "tab:orange", "-"),
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws a panel per activation."""
    return grids.draw(result, _STYLES, "learning rate")
