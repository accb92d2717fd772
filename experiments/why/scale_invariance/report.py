"""The tables of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

# The rounding of float32 sums of 100 terms, divided by standard deviations near 1.
_ROUNDING = 1e-5
# Growth may differ by this, because with an epsilon the gradient of very small weights
# is not quite orthogonal to them.
_GROWTH = 0.05
# The ratio of effective learning rates at the end, relative to that at the beginning.
_TOGETHER = 0.5
# "Close to 1" means within a factor of 2.
_NEAR = (0.5, 2.0)
_SHARE = 0.9  # The share of the singular values that must be near.


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join(
        [verdicts.table(verdict(result)), _layer(result), _norms(result),
         _singular(result)]
    )  # fmt: skip


def verdict(result: Mapping[str, Any]) -> dict[str, list[bool]]:
    """Returns for each claim whether it holds in each case."""
    exact = [
        error <= _ROUNDING
        for row in result["layer"]
        if row["epsilon"] == 0
        for error in row["errors"]
    ]
    with_bn = [run for name, run in _runs(result) if name.startswith("with_bn")]
    begun = _begun(result)
    return {
        "the identities of one layer": exact,
        "with BN ‖W‖ grows by its steps alone": [_growth(r) < _GROWTH for r in with_bn],
        "with BN the effective learning rates of other initial scales draw together": [
            _spread(r) <= _TOGETHER * begun for r in with_bn
        ],
        "with BN the singular values of Jacobians are close to 1": [
            _share(r) >= _SHARE for r in with_bn
        ],
    }


def _runs(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns names and results of the runs, in the order of the trainings."""
    names = [
        f"{network}_{activation}"
        for activation in result["config"]["activations"]
        for network in ("with_bn", "without_bn")
    ]
    return [(name, result["runs"][name]) for name in names]


def _begun(result: Mapping[str, Any]) -> float:
    """Returns the largest |W|^2 divided by the smallest, before the first step."""
    scales = result["config"]["scales"]
    return (max(scales) / min(scales)) ** 2


def _growth(run: Mapping[str, Any]) -> float:
    """Returns the largest relative distance of |W|^2 from the sum of squared steps."""
    norm, predicted = np.array(run["norm"], float), np.array(run["predicted"], float)
    return float(np.nanmax(np.abs(norm / predicted - 1)))


def _spread(run: Mapping[str, Any]) -> float:
    """Returns the largest |W|^2 of the scales divided by the smallest, at the end.

    It is the mean over layers.
    """
    norm = np.array(run["norm"], float)[-1].mean(0)  # [scales, layers]
    return float((norm.max(0) / norm.min(0)).mean())


def _share(run: Mapping[str, Any]) -> float:
    """Returns the share of singular values that are near 1."""
    values = np.array(run["singular"], float)
    return float(np.mean((_NEAR[0] <= values) & (values <= _NEAR[1])))


def _layer(result: Mapping[str, Any]) -> str:
    rows = [
        [f"{row['factor']:g}", f"{row['epsilon']:g}",
         *(f"{error:.1e}" for error in row["errors"])]
        for row in result["layer"]
    ]  # fmt: skip
    header = ["a", "epsilon", "output", "gradient by the input",
              "a times the gradient by the weights"]  # fmt: skip
    return (
        "One layer with weights aW in float32, and how far it is from W in float64 "
        "with epsilon 0 (root mean squares):\n\n" + output.markdown(header, rows)
    )


def _norms(result: Mapping[str, Any]) -> str:
    scales = result["config"]["scales"]
    rows = []
    for name, run in _runs(result):
        norm = np.array(run["norm"], float).mean(1)
        growth = (norm[-1] / norm[0]).mean(-1)
        accuracy = np.array(run["accuracy"], float).mean(0)
        accuracy = np.where(np.isnan(growth), np.nan, accuracy)
        rows.append(
            [_words(name), " / ".join(_number(a, ".3f") for a in accuracy),
             " / ".join(_number(g, ".2f") for g in growth),
             f"{_growth(run):.1e}", f"{np.nanmax(np.array(run['angle'], float)):.1e}",
             _number(_spread(run), ".1f")]
        )  # fmt: skip
    begun = " / ".join(f"{scale:g}" for scale in scales)
    header = ["network", f"accuracy, from {begun}",
              "growth of ‖W‖² since the first record",
              "‖W‖² off the sum of squared steps", "cosine of W and step",
              "largest over smallest ‖W‖²"]  # fmt: skip
    return (
        "Trainings with initial weights of several scales, whose effective learning "
        f"rates begin {_begun(result):g} apart; means over seeds and layers, the "
        "largest of what is off and of cosines:\n\n" + output.markdown(header, rows)
    )


def _singular(result: Mapping[str, Any]) -> str:
    rows = []
    for name, run in _runs(result):
        for place, scale in enumerate(result["config"]["scales"]):
            values = np.array(run["singular"], float)[place].ravel()
            low, middle, high = np.percentile(values, (5, 50, 95))
            near = np.mean((_NEAR[0] <= values) & (values <= _NEAR[1]))
            cells = ["diverged", *[""] * 4]
            if not np.isnan(values).any():
                cells = [f"{np.sqrt(np.mean(values**2)):.2f}", f"{low:.3f}",
                         f"{middle:.2f}", f"{high:.2f}", f"{near:.0%}"]  # fmt: skip
            rows.append([_words(name), f"{scale:g}", *cells])
    header = ["network", "initial scale", "root mean square", "5 %", "median", "95 %",
              f"within {_NEAR[0]:g} to {_NEAR[1]:g}"]  # fmt: skip
    return (
        "Singular values of the Jacobians between the inputs of consecutive "
        "nonlinearities, after training:\n\n" + output.markdown(header, rows)
    )


def _number(value: float, form: str) -> str:
    return "diverged" if np.isnan(value) else format(value, form)


def _words(name: str) -> str:
    network, activation = name.rsplit("_", 1)
    return f"{activation}, {network.replace('_', ' ').replace('bn', 'BN')}"
