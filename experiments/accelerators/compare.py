"""Rows of the study beside each other: what a step costs over that with Flax."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_SAME = ("target", "program", "dtype", "parameters", "activation", "style", "devices",
         "images")  # fmt: skip


def cost(row: Row) -> float | None:
    """What decides: a TPU's estimated cycles, MB that a GPU's own kernels move."""
    if "error" in row:
        return None
    if row["platform"] == "tpu":
        return row["cycles"]
    return row["read_MB"] + row["written_MB"]


def beside(rows: Iterable[Row], row: Row, norm: str) -> Row | None:
    """The row that differs from this one by its normalisation only."""
    for other in rows:
        same = all(other[name] == row[name] for name in _SAME)
        if same and other["norm"] == norm and other["statistics"] == "global":
            return other
    return None


def over_flax(rows: Sequence[Row], row: Row) -> float | None:
    """The cost of a step over that with Flax's fast form."""
    flax = beside(rows, row, "flax")
    mine, theirs = cost(row), cost(flax) if flax else None
    return mine / theirs if mine and theirs else None


def normalisation_over_flax(rows: Sequence[Row], row: Row) -> float | None:
    """The same of what a step costs more than with a scale and a bias only.

    None where Flax costs less than a hundredth more, as in inference: nothing can be
    read from the ratio of two differences as small as that.
    """
    none, flax = (beside(rows, row, name) for name in ("none", "flax"))
    mine = cost(row)
    least, theirs = (cost(each) if each else None for each in (none, flax))
    if not (mine and least and theirs) or theirs < 1.01 * least:
        return None
    return (mine - least) / (theirs - least)
