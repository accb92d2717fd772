"""Which scales of initial weights does a network survive?"""

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
    """A panel per activation."""
    return grids.draw(result, _STYLES, "standard deviation of the initial weights")
