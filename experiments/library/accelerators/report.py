"""The tables of the study, from its JSON alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.compilers import targets
from experiments.framework import output
from experiments.library.accelerators import (
    compare,
    report_devices,
    report_summary,
)
from experiments.networks import norms

Row = Mapping[str, Any]

NOT_RUN = "compiled, not run"
PROGRAMS = {
    "layer": "One layer between 1x1 convolutions, forward and backward, 64 images of "
    "56x56, 256 channels",
    "small_network": "Small network, training step, 32 images of 96x96",
    "resnet50": "ResNet-50, training step, 64 images of 224x224",
    "bn_inception": "BN-Inception, training step, 64 images of 224x224",
    "inference": "ResNet-50, inference, 64 images of 224x224",
}


def line(row: Row) -> str:
    """Returns one line of text for a row."""
    if "error" in row:
        return row["error"]
    cycles = f"{row['cycles'] / 1e6:.2f} M cycles, " if "cycles" in row else ""
    return (
        f"{cycles}{row['read_MB']:.0f} + {row['written_MB']:.0f} MB moved, "
        f"{row['temporary_MB']:.0f} MB temporary, {row['conditionals']} conditionals, "
        f"{row['barriers']} barriers, {row['compile_s']} s"
    )


def precision(row: Row) -> str:
    """Returns the dtype, with a note if parameters are cast to it."""
    return row["dtype"] + (", cast" if row["parameters"] == "cast" else "")


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    rows = sorted(result["rows"], key=_order)
    single = [row for row in rows if row["style"] == "one" and not row["images"]]
    sections = [
        (
            "In short: a training step, over that with Flax's default",
            report_summary.headline(rows),
        ),
        ("What was aimed at, over Flax's fast form", report_summary.aims(rows)),
        ("A step, over that with Flax's fast form", _ratios(single, compare.over_flax)),
        (
            "What a step costs more than with a scale and a bias only, over the same "
            "of Flax's fast form",
            _ratios(single, compare.normalisation_over_flax),
        ),
        *(
            (title, _details([row for row in single if row["program"] == program]))
            for program, title in PROGRAMS.items()
        ),
        *report_devices.sections(rows, result.get("pods", {})),
        ("No program", _failures(rows)),
    ]
    parts = [_introduction(rows)]
    parts += [f"{title} ({NOT_RUN}):\n\n{body}" for title, body in sections if body]
    return "\n\n".join(parts) + "\n"


def _introduction(rows: Sequence[Row]) -> str:
    versions = sorted({f"JAX {row['jax']}" for row in rows})
    versions += sorted({row["compiler"] for row in rows})
    names = dict.fromkeys(targets.NAMES[row["target"]] for row in rows)
    return (
        f"Everything here is {NOT_RUN}: by {', '.join(versions)}, for "
        f"{', '.join(names)}. Cycles are the TPU compiler's own estimate, without the "
        "branches of conditionals and without collectives; traffic is what the kernels "
        "that XLA makes read and write in main memory, without the convolutions and "
        "products of libraries. Parameters are float32; the dtype is what the layers "
        "are told to compute in, or, where it says cast, what all parameters are cast "
        "to before the network is given them."
    )


def _order(row: Row) -> tuple[Any, ...]:
    """Returns the sort key of a row: names sort in the order of their lists."""
    programs, names = list(PROGRAMS), list(norms.ALL)
    program, norm = row["program"], row["norm"]
    return (
        programs.index(program) if program in programs else len(programs),
        precision(row),
        row["activation"] == "leaky_relu",
        list(targets.NAMES).index(row["target"]),
        row["style"],
        row["statistics"],
        names.index(norm) if norm in names else len(names),
        row["images"],
    )


def _ratios(
    rows: Sequence[Row], ratio: Callable[[Sequence[Row], Row], float | None]
) -> str:
    """Returns a table with a line per program and normalisation.

    The targets are its columns.
    """
    columns = [t for t in targets.NAMES if any(row["target"] == t for row in rows)]
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for name in [*norms.ALL]:
        for row in rows:
            value = ratio(rows, row)
            if row["norm"] == name and value is not None:
                place = row["program"], precision(row), row["activation"], name
                found.setdefault(place, {})[row["target"]] = f"{value:.2f}"
    programs = list(PROGRAMS)
    lines = [
        [*place, *(cells.get(target, "") for target in columns)]
        for place, cells in sorted(
            found.items(), key=lambda item: (programs.index(item[0][0]), *item[0][1:3])
        )
    ]
    header = ["program", "dtype", "activation", "normalisation"]
    header += [
        f"{targets.NAMES[t]}, {'traffic' if t == 'h200' else 'cycles'}" for t in columns
    ]
    return output.markdown(header, lines) if lines else ""


def _details(rows: Sequence[Row]) -> str:
    header = ["target", "dtype", "activation", "normalisation", "M cycles",
              "in branches", "MB read + written", "kernels", "conditionals",
              "barriers", "temporary MB", "compiled in s"]  # fmt: skip
    lines = [
        [
            targets.NAMES[row["target"]],
            precision(row), row["activation"], row["norm"],
            f"{row['cycles'] / 1e6:.2f}" if "cycles" in row else "",
            f"{row['branch_cycles'] / 1e6:.2f}" if "cycles" in row else "",
            f"{row['read_MB']:.0f} + {row['written_MB']:.0f}",
            row["kernels"], row["conditionals"], row["barriers"],
            row["temporary_MB"], row["compile_s"],
        ]
        for row in rows
        if "error" not in row
    ]  # fmt: skip
    return output.markdown(header, lines) if lines else ""


def _failures(rows: Sequence[Row]) -> str:
    """Returns a table of failures, without those of searches for the largest batch."""
    header = ["target", "devices", "program", "dtype", "activation", "normalisation",
              "why"]  # fmt: skip
    lines = [
        [
            targets.NAMES[row["target"]], row["devices"], row["program"],
            precision(row), row["activation"], row["norm"], row["error"],
        ]
        for row in rows
        if "error" in row and not row["images"]
    ]  # fmt: skip
    return output.markdown(header, lines) if lines else ""
