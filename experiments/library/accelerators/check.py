"""Fails if the op costs more on a TPU v5e than Flax's layer does.

    python -m experiments.library.accelerators.check

It compiles the small network with jaxbn and with Flax, in bfloat16 as users of Flax
write it, and a layer on four chips. It needs no TPU, and three minutes on two cores.
"""

import sys
from collections.abc import Mapping
from typing import Any

from experiments.compilers import cases, targets
from experiments.library.accelerators import process, report

_NORMS = ("flax", "jaxbn")
_STYLES = ("jit", "shard_map")

CASES = {norm: cases.Case(program="small_network", norm=norm) for norm in _NORMS} | {
    f"{norm}, {style}": cases.Case(program="layer", norm=norm, style=style, devices=4)
    for norm in _NORMS
    for style in _STYLES
}


def problems(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns one line for each problem.

    Args:
      rows: the rows of `CASES`, by name.
    """
    found = [
        f"{CASES[name].label()}: {row['error']}"
        for name, row in rows.items()
        if "error" in row
    ]
    if found:
        return found
    ratio = rows["jaxbn"]["cycles"] / rows["flax"]["cycles"]
    if ratio > 1:
        found.append(
            f"The small network takes {ratio:.3f} of the cycles with Flax, and at most "
            "1 is expected."
        )
    for name, row in rows.items():
        for kind in ("barriers", "conditionals"):
            if row[kind] and CASES[name].norm == "jaxbn":
                found.append(
                    f"{CASES[name].label()} has {row[kind]} {kind}, none is expected."
                )
    for style in _STYLES:
        counts = rows[f"jaxbn, {style}"]["collectives"]
        flax = rows[f"flax, {style}"]["collectives"]
        for way in ("forward", "backward", "conditional"):
            if counts[way] > flax[way]:
                found.append(
                    f"A layer under {style} on four chips has {counts[way]} {way} "
                    f"collectives, and Flax's layer {flax[way]}."
                )
    return found


def main() -> None:
    """Prints each row once it is compiled, then the problems."""
    if why := targets.missing("tpu"):
        sys.exit(why)
    rows = {}
    for name, case in CASES.items():
        rows[name] = process.compile_case(case)
        print(f"{case.label()}: {report.line(rows[name])}", flush=True)
    if found := problems(rows):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
