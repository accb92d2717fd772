"""Fails if the op costs more on a TPU v5e than in the committed results.

    python -m experiments.library.accelerators.check

It compiles the small network with jaxbn and with Flax, and a layer on four chips. It
needs no TPU, and two minutes on two cores.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.compilers import cases, targets
from experiments.library.accelerators import compare, process, report

COMMITTED = pathlib.Path(__file__).parent / "results" / "accelerators.json"
TOLERANCE = 0.03  # A new version of the compiler changes the ratio a little.

_SAME = ("target", "program", "dtype", "parameters", "activation")

CASES = {
    "flax": cases.Case(program="small_network", norm="flax"),
    "jaxbn": cases.Case(program="small_network", norm="jaxbn"),
    "layer": cases.Case(program="layer", norm="jaxbn", style="shard_map", devices=4),
}


def problems(
    rows: Mapping[str, Mapping[str, Any]], committed: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Returns one line for each problem.

    Args:
      rows: the rows of `CASES`, by name.
      committed: the rows of the committed results.
    """
    found = [
        f"{CASES[name].label()}: {row['error']}"
        for name, row in rows.items()
        if "error" in row
    ]
    if found:
        return found
    jaxbn, counts = rows["jaxbn"], rows["layer"]["collectives"]
    ratio = jaxbn["cycles"] / rows["flax"]["cycles"]
    before = [
        compare.over_flax(committed, row)
        for row in committed
        if all(row[k] == jaxbn[k] for k in _SAME)
        and (row["norm"], row["images"]) == ("jaxbn", 0)
    ]
    if not before or before[0] is None:
        found.append(f"{COMMITTED.name} has no small network with jaxbn and with Flax.")
    elif ratio > before[0] * (1 + TOLERANCE):
        found.append(
            f"The small network with jaxbn takes {ratio:.3f} of the cycles with Flax, "
            f"the committed results say {before[0]:.3f}."
        )
    for name in ("jaxbn", "layer"):
        if rows[name]["barriers"]:
            found.append(
                f"{CASES[name].label()} has {rows[name]['barriers']} optimization "
                "barriers: the sums of the backward pass cannot join other kernels."
            )
    if jaxbn["conditionals"]:
        found.append(
            f"The small network has {jaxbn['conditionals']} conditionals: its "
            "activations are so small that two passes are expected."
        )
    if (counts["forward"], counts["backward"], counts["conditional"]) != (1, 1, 0):
        found.append(
            f"A layer on four chips has {counts['forward']} collectives forward and "
            f"{counts['backward']} backward, {counts['conditional']} in branches; one "
            "each way is expected."
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
    committed = json.loads(COMMITTED.read_text())["rows"] if COMMITTED.exists() else []
    if found := problems(rows, committed):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
