"""The tables of the study, made from its JSON alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import output, verdicts
from experiments.outside_gradient import figure

# Float32 sums of a bias that grows to 100 and inputs near 1.
_ROUNDING = 1e-3
# The bias that nothing calls for is larger than all inputs by far.
_BLOWN_UP = 1000.0


def write(path: pathlib.Path) -> str:
    """Writes `.md` and `.png` beside the JSON at `path`; returns the text."""
    return output.write_pages(path, table, {"": figure.draw})


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    parts = [verdicts.table(verdict(result)), _unit(result), _networks(result)]
    return "\n\n".join(parts)


def verdict(result: Mapping[str, Any]) -> dict[str, list[bool]]:
    """By claim, what of it was found to hold."""
    config = result["config"]
    unit = {name: _arrays(values) for name, values in result["unit"].items()}
    networks = {name: _arrays(values) for name, values in result["networks"].items()}
    centred, scaled = unit["centred outside"], unit["centred and scaled outside"]
    told = config["learning_rate"] * config["steps"] * result["target_mean"]
    biases = {name: each["bias"].mean(-1) for name, each in networks.items()}
    outside = biases["centred outside"]
    blown = networks["centred and scaled outside"]
    return {
        "centred outside the gradient, the bias of one unit grows at every step": [
            abs(centred["bias"][-1] / told - 1) < _ROUNDING
        ],
        "while its loss remains fixed": [
            bool(np.ptp(centred["loss"]) < _ROUNDING * centred["loss"][0])
        ],
        "scaled outside too, it gets worse": [
            bool(abs(scaled["bias"][-1]) > abs(centred["bias"][-1]))
        ],
        "in a network, biases grow without end where the centring is outside": [
            bool(np.all(np.diff(outside) > 0)),
            bool(outside[-1] > 1.5 * outside[len(outside) // 2 - 1]),
        ],
        "and the network blows up where the scaling is outside too": [
            bool(~blown["finite"][-1].all())
            or bool(blown["bias"][-1].mean() > _BLOWN_UP),
        ],
        "with BN neither happens": [
            bool(networks["BN"]["finite"].all()),
            bool(networks["BN"]["bias"].max() < _ROUNDING),
        ],
    }


def _arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(each, float) for name, each in values.items()} | (
        {"finite": np.array(values["finite"], bool)} if "finite" in values else {}
    )


def _unit(result: Mapping[str, Any]) -> str:
    rows = []
    for name, values in result["unit"].items():
        bias, scale, loss = (
            np.array(values[key], float) for key in ("bias", "scale", "loss")
        )
        largest = np.nanmax(np.abs(bias))
        rows.append([name, f"{bias[-1]:.4g}", f"{largest:.4g}", f"{scale[-1]:.4g}",
                     f"{loss[0]:.4f}", f"{loss[-1]:.4f}"])  # fmt: skip
    header = ["one unit", "bias at the end", "largest", "scale at the end",
              "loss at the start", "loss at the end"]  # fmt: skip
    return (
        f"One unit of {result['config']['steps']} steps, whose bias changes nothing of "
        "the output:\n\n" + output.markdown(header, rows)
    )


def _networks(result: Mapping[str, Any]) -> str:
    rows = []
    for name, values in result["networks"].items():
        found = _arrays(values)
        half = len(found["bias"]) // 2 - 1
        lost = (~found["finite"][-1]).sum()
        cells = [
            f"{found[key][place].mean():.4g}"
            for key, place in (("bias", half), ("bias", -1), ("loss", -1))
        ]
        accuracy = f"{found['accuracy'][-1].mean():.3f}"
        rows.append([name, *cells, accuracy, f"{lost} of {len(found['finite'][-1])}"])
    header = ["network", "biases at half of the steps", "at the end", "loss",
              "accuracy", "seeds that diverged"]  # fmt: skip
    return (
        "Networks, normalised by the batch in evaluation too; the biases are those "
        "before normalisation, as one vector, means over seeds:\n\n"
        + output.markdown(header, rows)
    )
