"""The tables of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

# The rounding of float32 sums of a bias that grows to 100 and inputs near 1.
_ROUNDING = 1e-3

OUTSIDE = ("centred outside", "centred and scaled outside")


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    parts = [verdicts.table(verdict(result)), _unit(result), _networks(result)]
    return "\n\n".join(parts)


def verdict(result: Mapping[str, Any]) -> dict[str, list[bool]]:
    """Returns for each claim whether it holds in each case."""
    config = result["config"]
    unit = {name: _arrays(values) for name, values in result["unit"].items()}
    networks = {name: _arrays(values) for name, values in result["networks"].items()}
    centred, scaled = unit["centred outside"], unit["centred and scaled outside"]
    told = config["learning_rate"] * config["steps"] * result["target_mean"]
    outside = [networks[name] for name in OUTSIDE]
    return {
        "centred outside the gradient, the bias of one unit grows at every step": [
            abs(centred["bias"][-1] / told - 1) < _ROUNDING
        ],
        "while its loss remains fixed": [
            bool(np.ptp(centred["loss"]) < _ROUNDING * centred["loss"][0])
        ],
        "scaled outside too, it gets worse: at first, and in the end": [
            bool(abs(scaled["bias"][place]) > abs(centred["bias"][place]))
            for place in (1, -1)
        ],
        "in a network biases grow without end, centred or scaled outside": [
            _grows(each["bias"].mean(-1)) for each in outside
        ],
        "and it blows up": [bool(~each["finite"][-1].all()) for each in outside],
        "with BN neither happens": [
            bool(networks["BN"]["finite"].all()),
            bool(networks["BN"]["bias"].max() < _ROUNDING),
        ],
    }


def _grows(sizes: np.ndarray) -> bool:
    """Returns True if sizes grow from record to record, while they are finite."""
    return bool(np.all(np.diff(sizes[np.isfinite(sizes)]) > 0))


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
            _number(found[key][place].mean())
            for key, place in (("bias", 0), ("bias", half), ("bias", -1), ("loss", -1))
        ]
        accuracy = f"{found['accuracy'][-1].mean():.3f}"
        rows.append([name, *cells, accuracy, f"{lost} of {len(found['finite'][-1])}"])
    header = ["network", "biases at the first record", "at half of the steps",
              "at the end", "loss",
              "accuracy", "seeds that diverged"]  # fmt: skip
    return (
        "Networks, normalised by the batch in evaluation too; the biases are those "
        "before normalisation, as one vector, means over seeds:\n\n"
        + output.markdown(header, rows)
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "diverged"
