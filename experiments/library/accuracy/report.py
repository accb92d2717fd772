"""The tables of the study, from its JSON alone."""

from collections.abc import Mapping
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
    return "\n\n".join(parts) + "\n"
