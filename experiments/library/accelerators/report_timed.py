"""The table of the times on a GPU, from its JSON alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.framework import output

Row = Mapping[str, Any]


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    rows = result["rows"]
    groups = dict.fromkeys(map(_group, rows))
    parts = [
        f"{result['rounds']} rounds. Ratios are medians over the rounds, with "
        "quartiles. Traffic is what XLA's own kernels move by the HLO, branches of "
        "conditionals left out; its share of a step is what it takes at the speed of a "
        "copy. PyTorch runs as its users write it."
    ]
    for group in groups:
        program, dtype, images, setting = group
        title = f"{program}, {dtype}, {images} images, {setting}"
        parts.append(f"{title}:\n\n" + _table(rows, group))
    return "\n\n".join(parts) + "\n"


def _group(row: Row) -> tuple[Any, ...]:
    return row["program"], row["dtype"], row["images"], row["setting"]


def _table(rows: Sequence[Row], group: Sequence[Any]) -> str:
    rows = [row for row in rows if _group(row) == group]
    flax = next((row for row in rows if row["norm"] == "flax"), {})
    lines = [
        [
            row["norm"],
            f"{row['ms']:.3f}",
            _or_nothing(row.get("over_flax"), "{0[0]:.2f} ({0[1]:.2f} to {0[2]:.2f})"),
            _predicted(row, flax),
            _share(row),
            _or_nothing(row["conditionals"], "{}"),
            _or_nothing(row["temporary_MB"], "{:.0f}"),
        ]
        for row in rows
        if "error" not in row
    ]
    lines += [[row["norm"], row["error"], *[""] * 5] for row in rows if "error" in row]
    header = ["normalisation", "ms", "over flax", "traffic over flax's",
              "share of the traffic", "conditionals", "temporary MB"]  # fmt: skip
    return output.markdown(header, lines)


def _predicted(row: Row, flax: Row) -> str:
    if not (row["traffic_MB"] and flax.get("traffic_MB")):
        return ""
    return f"{row['traffic_MB'] / flax['traffic_MB']:.2f}"


def _share(row: Row) -> str:
    """Returns the share of the step that moving its traffic takes at least."""
    if not row["traffic_MB"]:
        return ""
    return f"{row['traffic_MB'] / row['copy_GBps'] / row['ms']:.2f}"


def _or_nothing(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)
