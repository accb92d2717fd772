"""Compares rows of the study: the cost of a step relative to Flax."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_SAME = ("target", "program", "dtype", "parameters", "activation", "style", "devices",
         "images")  # fmt: skip


def cost(row: Row) -> float | None:
    """Returns the cost of a step, or None without a program.

    It is the estimated cycles on a TPU, and the MB that XLA's own kernels move on a
    GPU.
    """
    if "error" in row:
        return None
    if row["platform"] == "tpu":
        return row["cycles"]
    return row["read_MB"] + row["written_MB"]


def beside(rows: Iterable[Row], row: Row, norm: str) -> Row | None:
    """Returns the row that differs from this one in its normalisation only."""
    for other in rows:
        same = all(other[name] == row[name] for name in _SAME)
        if same and other["norm"] == norm and other["statistics"] == "global":
            return other
    return None


def over_flax(rows: Sequence[Row], row: Row) -> float | None:
    """Returns the cost of a step divided by that with Flax's fast form."""
    flax = beside(rows, row, "flax")
    mine, theirs = cost(row), cost(flax) if flax else None
    return mine / theirs if mine and theirs else None


def normalisation_over_flax(rows: Sequence[Row], row: Row) -> float | None:
    """Returns the cost of the normalisation divided by that of Flax's fast form.

    The cost of the normalisation is the cost of the step minus that of a step with only
    a scale and a bias. The result is None if Flax's normalisation costs less than a
    hundredth of that step, as in inference: a ratio of such small differences says
    nothing.
    """
    none, flax = (beside(rows, row, name) for name in ("none", "flax"))
    mine = cost(row)
    least, theirs = (cost(each) if each else None for each in (none, flax))
    if not (mine and least and theirs) or theirs < 1.01 * least:
        return None
    return (mine - least) / (theirs - least)
