"""The tables of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

NETWORKS = ("with_bn", "without_bn")

# A layer is stuck in the saturated modes if more of its inputs are in the flat part.
_STUCK = 0.5
# The gradient reaches the first layer if this part of the last layer's is left there.
_REACHES = 0.1
# The range of "about half" of the ReLUs.
_HALF = (0.3, 0.7)


def curves(result: Mapping[str, Any], run: str, name: str) -> np.ndarray:
    """Returns means over seeds, `[records, scales, layers]`.

    They are NaN where a seed diverged.
    """
    return np.array(result["runs"][run][name], float).mean(1)


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    activations = result["config"]["activations"]
    claims: dict[str, list[bool]] = {}
    if "sigmoid" in activations:
        claims |= _sigmoid(result)
    if "relu" in activations:
        active = 1 - curves(result, "with_bn_relu", "saturated")
        half = (_HALF[0] <= active) & (active <= _HALF[1])
        claims["with BN about half of the ReLUs are active"] = list(half.all((0, 2)))
    return "\n\n".join([verdicts.table(claims), _ends(result)])


def _sigmoid(result: Mapping[str, Any]) -> dict[str, list[bool]]:
    """Returns the claims about sigmoids, and whether they hold.

    A scale is stuck if any layer is at any record. Its gradient reaches the first layer
    if it does so at all records.
    """
    stuck, reaches = {}, {}
    for name in NETWORKS:
        run = f"{name}_sigmoid"
        stuck[name] = (curves(result, run, "saturated") > _STUCK).any((0, 2))
        gradient = curves(result, run, "gradient")[..., 0]
        reaches[name] = (gradient > _REACHES).all(0)
    usual, large = 0, -1  # These are indices of the scales.
    return {
        "without BN large weights leave sigmoids saturated": [
            stuck["without_bn"][large]
        ],
        "without BN and with weights as usual the gradient vanishes on its way down": [
            not reaches["without_bn"][usual]
        ],
        "with BN neither happens, from any of these weights": [
            *~stuck["with_bn"],
            *reaches["with_bn"],
        ],
    }


def _ends(result: Mapping[str, Any]) -> str:
    rows = []
    for activation in result["config"]["activations"]:
        for network in NETWORKS:
            run = f"{network}_{activation}"
            accuracy = np.array(result["runs"][run]["accuracy"], float).mean(0)
            for place, scale in enumerate(result["config"]["scales"]):
                cells = [f"{accuracy[place]:.3f}"]
                for name in ("saturated", "dead", "gradient", "vanished"):
                    values = curves(result, run, name)[-1, place]
                    cells.append(" / ".join(f"{value:.2g}" for value in values))
                if np.isnan(accuracy[place]):
                    cells = ["diverged", *[""] * 4]
                label = network.replace("_", " ").replace("bn", "BN")
                rows.append([f"{activation}, {label}", f"{scale:g}", *cells])
    header = ["network", "initial scale", "accuracy", "saturated or inactive", "dead",
              "gradient over that of the last layer", "gradients gone"]  # fmt: skip
    return (
        f"After {result['steps'][-1]} steps, by hidden layer from the first to the "
        f"last, mean of {result['config']['seeds']} seeds:\n\n"
        + output.markdown(header, rows)
    )
