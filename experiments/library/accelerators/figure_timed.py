"""The figure of the times on a GPU, relative to Flax."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws a panel per program, with bars for each normalisation and setting.

    Whiskers are quartiles over the rounds.
    """
    rows = [row for row in result["rows"] if row.get("over_flax")]
    programs = list(dict.fromkeys(_title(row) for row in rows))
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure, panels = plt.subplots(
        max(1, len(programs)), 1, figsize=(10, 1 + 2.6 * max(1, len(programs))),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for (axes,), program in zip(panels, programs, strict=False):
        norms = list(
            dict.fromkeys(row["norm"] for row in rows if _title(row) == program)
        )
        for offset, setting in enumerate(settings):
            shown = [
                row for row in rows
                if _title(row) == program and row["setting"] == setting
            ]  # fmt: skip
            at = [norms.index(row["norm"]) + 0.4 * offset - 0.2 for row in shown]
            median, low, high = zip(*(row["over_flax"] for row in shown), strict=True)
            whiskers = [
                [m - each for m, each in zip(median, low, strict=True)],
                [each - m for m, each in zip(median, high, strict=True)],
            ]
            axes.bar(at, median, 0.38, yerr=whiskers, label=setting)
        axes.axhline(1, color="black", lw=0.8)
        axes.set_xticks(range(len(norms)), norms, fontsize=7, rotation=20)
        axes.set(title=program, ylabel="time over Flax's")
        axes.legend(fontsize=7)
    return figure


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['program']}, {row['dtype']}, {row['images']} images"
