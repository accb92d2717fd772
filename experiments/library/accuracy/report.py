"""The tables of the study, from its JSON alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.framework import output

NAMES = ("jaxbn", "flax fast", "flax stable", "torch")
QUANTITIES = ("y", "dx", "dscale")


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    names = [name for name in NAMES if name in result["rows"][0]["errors"]]
    parts = [
        "Root mean square errors against float64, over the root mean square of what "
        "they are errors of; those of the scale's gradient over `sqrt(sum(dy^2))`."
    ]
    for quantity in QUANTITIES:
        rows = [
            [
                row["dtype"], row["elements"], f"N({row['mean']:.0f}, 1)",
                f"{row['ratio']:.0f}",
                *(f"{row['errors'][name][quantity]:.1e}" for name in names),
            ]
            for row in result["rows"]
        ]  # fmt: skip
        header = ["dtype", "elements", "dy", "mean / std", *names]
        parts.append(f"`{quantity}`:\n\n" + output.markdown(header, rows))
    parts += _forms(result["forms"])
    return "\n\n".join(parts) + "\n"


def _forms(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(row["form"] for row in rows))
    found = {(row["dtype"], row["ratio"], row["form"]): row for row in rows}
    cases = dict.fromkeys((row["dtype"], row["ratio"]) for row in rows)
    yield "The largest relative error of the variance, by the form that computes it."
    for order, title in (("cpu", "XLA:CPU"), ("tpu", "Sums in the order of a TPU")):
        lines = [
            [dtype, f"{ratio:.0f}"]
            + [
                f"{found[dtype, ratio, name][order]:.1e}"
                if (dtype, ratio, name) in found
                else ""
                for name in names
            ]
            for dtype, ratio in cases
        ]
        header = ["dtype", "mean / std", *names]
        yield f"{title}:\n\n" + output.markdown(header, lines)
