"""The tables of the study, made from its JSON alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import output, verdicts
from experiments.saturation import figure

NETWORKS = ("with_bn", "without_bn")

# More than half of the inputs in the flat part: the layer is in its saturated modes.
_STUCK = 0.5
# The gradient reaches the first layer if a tenth of that of the last is left there.
_REACHES = 0.1
# "About half" of the ReLUs.
_HALF = (0.3, 0.7)


def write(path: pathlib.Path) -> str:
    """Writes `.md` and `.png` beside the JSON at `path`; returns the text."""
    return output.write_pages(path, table, {"": figure.draw})


def curves(result: Mapping[str, Any], run: str, name: str) -> np.ndarray:
    """Means over seeds, `[records, scales, layers]`; NaN where nothing is finite."""
    return np.array(result["runs"][run][name], float).mean(1)


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    activations = result["config"]["activations"]
    lines = []
    if "sigmoid" in activations:
        lines += _sigmoid(result)
    if "relu" in activations:
        active = 1 - curves(result, "with_bn_relu", "saturated")
        half = (_HALF[0] <= active) & (active <= _HALF[1])
        verdict = verdicts.of(*half.all((0, 2)))
        lines.append(f"- with BN about half of the ReLUs are active: **{verdict}**")
    return "\n\n".join(["Verdicts:\n\n" + "\n".join(lines), _ends(result)])


def _sigmoid(result: Mapping[str, Any]) -> list[str]:
    stuck = {
        name: (curves(result, f"{name}_sigmoid", "saturated") > _STUCK).any((0, 2))
        for name in NETWORKS
    }
    reaches = {
        name: (curves(result, f"{name}_sigmoid", "gradient")[..., 0] > _REACHES).all(0)
        for name in NETWORKS
    }
    return [
        "- without BN sigmoids of some layer are saturated, by initial scale: "
        f"**{verdicts.of(*stuck['without_bn'])}**",
        f"- with BN they are not: **{verdicts.of(*~stuck['with_bn'])}**",
        "- without BN the gradient vanishes before the first layer of sigmoids: "
        f"**{verdicts.of(*~reaches['without_bn'])}**",
        f"- with BN it does not: **{verdicts.of(*reaches['with_bn'])}**",
    ]


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
