"""The summary of the study: the headline and the aims."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.compilers import cases, targets
from experiments.framework import output
from experiments.library.accelerators import compare

Row = Mapping[str, Any]
Ratio = Callable[[Sequence[Row], Row], float | None]

_CAST = {"parameters": "cast"}
_V5P = {"target": "v5p:2x2x1"}
_V6E = {"target": "v6e:2x2"}
_H200 = {"platform": "gpu", "target": "h200"}
_V4 = {"target": "v4:2x2x1"}
_SMALL = {"program": "small_network"}
_INCEPTION = {"program": "bn_inception"}
_FLOAT32 = {"dtype": "float32"}

_HEADLINE = (
    ("ResNet-50, layers with `dtype=bfloat16`: cycles", cases.Case()),
    ("ResNet-50, parameters cast to bfloat16: cycles", cases.Case(**_CAST)),
    ("small network, layers with `dtype=bfloat16`: cycles", cases.Case(**_SMALL)),
    ("small network, float32: cycles", cases.Case(**_SMALL, **_FLOAT32)),
    ("BN-Inception, layers with `dtype=bfloat16`: cycles", cases.Case(**_INCEPTION)),
    ("ResNet-50, layers with `dtype=bfloat16`: cycles", cases.Case(**_V5P)),
    ("ResNet-50, bfloat16: bytes that its kernels move", cases.Case(**_H200)),
    ("small network, bfloat16: bytes", cases.Case(**_H200, **_SMALL)),
    ("small network, float32: bytes", cases.Case(**_H200, **_SMALL, **_FLOAT32)),
)


class Aim(NamedTuple):
    """The most that jaxbn should cost, relative to Flax with its fast variance."""

    title: str
    case: cases.Case
    most: float
    ratio: Ratio = compare.over_flax


_AIMS = (
    Aim("ResNet-50, v5e, cast", cases.Case(**_CAST), 0.78),
    Aim("the same with `dtype`", cases.Case(), 0.78),
    Aim("ResNet-50, v5p, cast", cases.Case(**_V5P, **_CAST), 0.85),
    Aim("the same with `dtype`", cases.Case(**_V5P), 0.85),
    Aim("ResNet-50, v6e, cast", cases.Case(**_V6E, **_CAST), 0.85),
    Aim("small network, v5e, bfloat16, cast", cases.Case(**_SMALL, **_CAST), 0.83),
    Aim("the same with `dtype`", cases.Case(**_SMALL), 0.83),
    Aim("small network, v5e, float32", cases.Case(**_SMALL, dtype="float32"), 1.25),
    Aim("ResNet-50, H200", cases.Case(**_H200), 0.96),
    Aim(
        "ResNet-50, v5e, cast: the normalisation itself",
        cases.Case(**_CAST), 0.5, compare.normalisation_over_flax,
    ),
    Aim(
        "the same with `dtype`",
        cases.Case(), 0.5, compare.normalisation_over_flax,
    ),
    # The aims of exact sums, which came later.
    Aim("exact sums: ResNet-50, v5e, `dtype`", cases.Case(), 0.995),
    Aim("exact sums: ResNet-50, v5p, `dtype`", cases.Case(**_V5P), 0.995),
    Aim("exact sums: ResNet-50, v4, `dtype`", cases.Case(**_V4), 0.995),
    Aim("exact sums: small network, v5e, `dtype`", cases.Case(**_SMALL), 1.0),
    Aim("exact sums: the same, cast", cases.Case(**_SMALL, **_CAST), 0.68),
    Aim("later: ResNet-50, H200", cases.Case(**_H200), 0.92),
    Aim("later: small network, H200", cases.Case(**_H200, **_SMALL), 0.97),
    Aim("later: the same in float32", cases.Case(**_H200, **_SMALL, **_FLOAT32), 1.0),
)  # fmt: skip


def headline(rows: Sequence[Row]) -> str:
    """Returns a short table of the costs of the normalisations relative to Flax."""
    header = ["platform", "what is compared", "Flax, default", "Flax, stable",
              "**jaxbn**", "**with `ConvBatchNorm`**",
              "scale and bias only"]  # fmt: skip
    lines = []
    for title, case in _HEADLINE:
        costs = [
            _ratio(rows, dataclasses.replace(case, norm=norm), compare.over_flax)
            for norm in ("flax", "flax stable", case.norm, "jaxbn, joined", "none")
        ]
        if costs[2] is not None:
            cells = ["" if cost is None else f"{cost:.2f}" for cost in costs]
            cells[2:4] = [cell and f"**{cell}**" for cell in cells[2:4]]
            lines.append([targets.NAMES[case.target], title, *cells])
    return output.markdown(header, lines) if lines else ""


def aims(rows: Sequence[Row]) -> str:
    """Returns a table of the aims and the compiled results."""
    lines = []
    for aim in _AIMS:
        found = _ratio(rows, aim.case, aim.ratio)
        cells = ["", "not known"]
        if found is not None:
            cells = [f"{found:.3f}", "met" if found <= aim.most else "missed"]
        lines.append([aim.title, f"{aim.most:g}", *cells])
    found = [line for line in lines if line[2]]
    return output.markdown(["", "at most", "compiled", ""], lines) if found else ""


def _ratio(rows: Sequence[Row], case: cases.Case, ratio: Ratio) -> float | None:
    wanted = dataclasses.asdict(case)
    for row in rows:
        if all(row[name] == value for name, value in wanted.items()):
            return ratio(rows, row)
    return None
