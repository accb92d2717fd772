"""The tables of several devices, and of the largest batch on one device."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.compilers import targets
from experiments.framework import output
from experiments.library.accelerators import capacity, compare

Row = Mapping[str, Any]

STYLES = {
    "jit": "jit",
    "jit_mesh": "jit under set_mesh",
    "shard_map": "shard_map",
}


def sections(rows: Sequence[Row], pods: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields titles and tables; a table without rows is an empty string."""
    several = [row for row in rows if row["devices"] > 1 and "error" not in row]
    few = [row for row in several if row["program"] not in pods or not _is_pod(row)]
    many = [row for row in several if row["program"] in pods and _is_pod(row)]
    yield "Devices that share the batch", _parallel(few)
    yield (
        "Collectives of each normalisation layer in pods, forward and backward, beside "
        "the cost model of `sync_cost` for a torus with one core per chip",
        _pods(many, pods),
    )
    yield (
        "The largest batch of ResNet-50 with leaky ReLU, in bfloat16, on one device",
        _largest([row for row in rows if row["images"]]),
    )


def _is_pod(row: Row) -> bool:
    return row["devices"] > 8


def _parallel(rows: Sequence[Row]) -> str:
    header = ["target", "devices", "style", "program", "normalisation", "over Flax",
              "collectives forward", "backward", "of gradients", "in branches",
              "asynchronous", "kernels beside", "M cycles beside"]  # fmt: skip
    lines = []
    for row in rows:
        counts, ratio = row["collectives"], compare.over_flax(rows, row)
        beside = f"{counts['cycles_beside'] / 1e6:.2f}" if "cycles" in row else ""
        lines.append(
            [
                targets.NAMES[row["target"]], row["devices"], STYLES[row["style"]],
                row["program"], row["norm"], "" if ratio is None else f"{ratio:.2f}",
                counts["forward"], counts["backward"], counts["gradients"],
                counts["conditional"], counts["asynchronous"],
                counts["kernels_beside"], beside,
            ]
        )  # fmt: skip
    return output.markdown(header, lines) if lines else ""


def _pods(rows: Sequence[Row], pods: Mapping[str, Any]) -> str:
    header = ["program", "devices", "style", "normalisation", "statistics", "forward",
              "backward", "in branches", "of gradients", "M cycles",
              "predicted ms of statistics"]  # fmt: skip
    lines = []
    for row in rows:
        counts, about = row["collectives"], pods[row["program"]]
        layers = about["layers"]
        groups = {"global": str(row["devices"]), "groups": "8"}
        group = groups.get(row["statistics"])
        predicted = 0 if group is None else about["predicted_ms"][group]
        lines.append(
            [
                row["program"], row["devices"], STYLES[row["style"]], row["norm"],
                row["statistics"],
                *(
                    f"{counts[each] / layers:.2f}"
                    for each in ("forward", "backward", "conditional")
                ),
                counts["gradients"], f"{row['cycles'] / 1e6:.2f}", f"{predicted:.3f}",
            ]
        )  # fmt: skip
    return output.markdown(header, lines) if lines else ""


def _largest(rows: Sequence[Row]) -> str:
    searches: dict[tuple[str, str], dict[int, capacity.Point]] = {}
    for row in rows:
        point = capacity.read(row, targets.MEMORY[row["target"]])
        if point is not None:
            points = searches.setdefault((row["target"], row["norm"]), {})
            points[row["images"]] = point
    header = ["target", "normalisation", "images", "MB needed by number of images"]
    lines = []
    for (target, norm), points in searches.items():
        needed = (
            f"{n}: {point.bytes / 1e6:.0f}" + ("" if point.fits else " (too many)")
            for n, point in sorted(points.items())
            if point.bytes
        )
        step = capacity.STEP["gpu" if target == "h200" else "tpu"]
        largest = capacity.largest(points, step)
        lines.append([targets.NAMES[target], norm, largest, ", ".join(needed)])
    return output.markdown(header, lines) if lines else ""
