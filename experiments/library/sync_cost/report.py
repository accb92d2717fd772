"""The tables of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

from experiments.framework import output


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    parts = (_cost_table, _rows_line, _mlperf_table, _layer_table, _network_table)
    return "\n\n".join(part(result) for part in parts) + "\n"


def _cost_table(result: Mapping[str, Any]) -> str:
    shown = (2, 8, 16, 32, 64, 128, 512, 2048, 8192)
    rows = []
    for network, by_hardware in result["milliseconds"].items():
        for hardware, values in by_hardware.items():
            alone = result["unsynchronised"][network][hardware]
            cells = []
            for group in shown:
                added = values[result["groups"].index(group)]
                cells.append(f"{added:.2f} ({added / (added + alone['ms']):.0%})")
            rows.append([f"{network}, {hardware}", f"{alone['ms']:.1f}", *cells])
    return (
        "Milliseconds added to a step by statistics over groups of devices, and their "
        "share of that step:\n\n"
        + output.markdown(["network, hardware", "step without", *map(str, shown)], rows)
        + "\n\nGroups work side by side: groups of 8 cost the same on 8 devices and on "
        "8192; over all devices a group is their number. Images per device: "
        + ", ".join(
            f"{alone['images']} ({hardware})"
            for hardware, alone in result["unsynchronised"]["ResNet-50"].items()
        )
        + "."
    )


def _rows_line(result: Mapping[str, Any]) -> str:
    return (
        "Rows against sums for 8 to 128 devices, ResNet-50: "
        + "; ".join(
            f"{hardware} {', '.join(f'{value:.2f}' for value in values)}"
            for hardware, values in result["rows_over_sums"].items()
        )
        + f". Rows are used up to {result['max_rows']}."
    )


def _mlperf_table(result: Mapping[str, Any]) -> str:
    fit = result["mlperf"]
    header = ["run", "cores", "images per core", "group", "whole run, ms", "steady ms",
              "spread of five", "predicted ms", "of it gradient", "synchronisation",
              "error"]  # fmt: skip
    rows = [
        [
            row["run"] + (" (fitted)" if row["fitted"] else ""),
            *(row[k] for k in ("cores", "images_per_core", "group", "published_ms")),
            row["steady_ms"],
            f"{row['spread']:.1%}",
            row["predicted_ms"],
            row["gradient_ms"],
            f"{row['sync_ms']} ms, {row['sync_share']:.1%}",
            f"{row['error']:+.0%}",
        ]
        for row in fit["runs"]
    ]
    line = fit["straight_line"]
    errors = ", ".join(f"{error:+.0%}" for error in line["errors"])
    return (
        "MLPerf, ResNet-50 on TPU v3: the compiler's estimate of a step times "
        f"{fit['factor']}, fitted to the runs marked so:\n\n"
        + output.markdown(header, rows)
        + f"\n\nInstead {line['ms_per_image']} ms per image and {line['constant_ms']} "
        "ms per step, fitted to whole runs without synchronisation, would be off by "
        f"{errors}."
    )


def _layer_table(result: Mapping[str, Any]) -> str:
    header = ["style", "layer", "forward", "bytes", "both", "bytes",
              "only if ill conditioned"]  # fmt: skip
    rows = [
        [
            row["style"], row["layer"], row["forward"], f"{row['forward_bytes']:,}",
            row["both"], f"{row['both_bytes']:,}", row["forward_conditional"],
        ]
        for row in result["collectives"]
    ]  # fmt: skip
    return (
        "Collectives of one layer of 64 channels on eight devices with the stable "
        "variance, from the compiled program (forward; forward and backward):\n\n"
        + output.markdown(header, rows)
    )


def _network_table(result: Mapping[str, Any]) -> str:
    header = ["processes", "devices", "collectives predicted", "compiled",
              "us each on this machine"]  # fmt: skip
    rows = [
        [
            row["processes"], row["devices"], row["predicted"], row["compiled"],
            row["microseconds_each"],
        ]
        for row in result["network"]
    ]  # fmt: skip
    layers = result["network"][0]["layers"]
    return f"{layers} layers, forward and backward:\n\n" + output.markdown(header, rows)
