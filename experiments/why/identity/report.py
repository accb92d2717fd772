"""The tables of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

# Half a unit in the last place of a mean of 1e4 deviations is 5e-4 of a deviation.
_ROUNDING = 1e-3
# Scale and bias count as recovered within a twentieth.
_FOUND = 0.05
# The noise of the statistics must fall as one over the batch size, within this factor.
_NOISE = 2.0


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    rows = [
        [f"{row['ratio']:g}", *(f"{row['errors'][name]:.1e}" for name in
         ("train", "inference", "train_gradient", "inference_gradient"))]
        for row in result["layer"]
    ]  # fmt: skip
    header = ["mean / std", "training", "inference", "gradient in training",
              "gradient in inference"]  # fmt: skip
    layer = (
        "One layer with scale sqrt(var + epsilon) and bias mean: what it changes of "
        "its input, and of a gradient (root mean squares, over those of what it "
        "changes):\n\n" + output.markdown(header, rows)
    )
    return "\n\n".join([verdicts.table(verdict(result)), layer, _learnt(result)])


def verdict(result: Mapping[str, Any]) -> dict[str, list[bool]]:
    """Returns for each claim whether it holds in each case."""
    last = [_last(values) for values in result["learnt"].values()]
    sizes = np.array([int(size) for size in result["learnt"]], float)
    noise = sizes * [each["training"] for each in last]
    return {
        "these values recover the input": [
            row["errors"][name] < _ROUNDING
            for row in result["layer"]
            for name in ("train", "inference")
        ],
        "they leave the gradient as it is": [
            row["errors"][name] < _ROUNDING
            for row in result["layer"]
            for name in ("train_gradient", "inference_gradient")
        ],
        "training finds them": [
            each[name] < _FOUND for each in last for name in ("scale", "bias")
        ],
        "what remains in training is noise that falls as one over the batch size": [
            bool(noise.max() < _NOISE * noise.min())
        ],
    }


def _last(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns means over seeds at the end."""
    return {name: float(np.mean(each[-1])) for name, each in values.items()}


def _learnt(result: Mapping[str, Any]) -> str:
    rows = []
    ordered = sorted(result["learnt"], key=int)
    for size in ordered:
        last = _last(result["learnt"][size])
        rows.append(
            [size, f"{last['scale']:.3f}", f"{last['bias']:.3f}",
             f"{last['training']:.4f}", f"{int(size) * last['training']:.2f}",
             f"{last['evaluation']:.4f}"]
        )  # fmt: skip
    header = ["batch size", "scale off", "bias off", "changed in training",
              "times the batch size", "changed in evaluation"]  # fmt: skip
    return (
        f"A layer of {result['channels']} pixels after {result['steps'][-1]} steps, "
        "trained to reproduce its input: distance of scale and bias from deviation and "
        "mean, over the deviation, and mean square of what it changes, over the "
        f"variance ({result['without_affine']:.3g} without scale and bias):\n\n"
        + output.markdown(header, rows)
    )
