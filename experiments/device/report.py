"""The table of the study, made from its JSON alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import plotting

Row = Mapping[str, Any]


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    rows = result["rows"]
    groups = dict.fromkeys(map(_group, rows))
    parts = [
        f"Timed on {result['device']}, which copies {result['copy_GBps']} GB/s, with "
        f"JAX {result['jax']}, {result['rounds']} rounds. Ratios are medians over the "
        "rounds, with quartiles; traffic is what XLA's own kernels move by the HLO, "
        "and its time is at the speed of a copy. PyTorch runs as its users write it."
    ]
    for group in groups:
        program, dtype, images, setting = group
        title = f"{program}, {dtype}, {images} images, {setting}"
        parts.append(f"{title}:\n\n" + _table(result, group))
    return "\n\n".join(parts) + "\n"


def _group(row: Row) -> tuple[Any, ...]:
    return row["program"], row["dtype"], row["images"], row["setting"]


def _table(result: Mapping[str, Any], group: Sequence[Any]) -> str:
    rows = [row for row in result["rows"] if _group(row) == group]
    flax = next((row for row in rows if row["norm"] == "flax"), {})
    lines = [
        [
            row["norm"],
            f"{row['ms']:.3f}",
            "{:.2f} ({:.2f} to {:.2f})".format(*row["over_flax"]),
            _predicted(row, flax),
            _share(row, result["copy_GBps"]),
            _or_nothing(row["conditionals"], "{}"),
            _or_nothing(row["temporary_MB"], "{:.0f}"),
        ]
        for row in rows
        if "error" not in row
    ]
    lines += [[row["norm"], row["error"], *[""] * 5] for row in rows if "error" in row]
    header = ["normalisation", "ms", "over flax", "predicted: traffic over flax",
              "time of the traffic, of all", "conditionals",
              "temporary MB"]  # fmt: skip
    return plotting.markdown(header, lines)


def _predicted(row: Row, flax: Row) -> str:
    if not row["traffic_MB"] or not flax.get("traffic_MB"):
        return ""
    return f"{row['traffic_MB'] / flax['traffic_MB']:.2f}"


def _share(row: Row, gigabytes_per_second: float) -> str:
    """Of the step: what moving its traffic takes at least."""
    if not row["traffic_MB"]:
        return ""
    return f"{row['traffic_MB'] / gigabytes_per_second / row['ms']:.2f}"


def _or_nothing(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)
