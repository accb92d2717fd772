"""The tables and the verdict of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

AS_MANY = 1.05
"""The steps with BN and with standardised features may differ by this factor."""
PROPORTIONAL = (0.5, 1.5)
"""The range of slopes of log steps by log condition number that count as proportional.
It is wide because the steps depend on the place of the target as well."""

SCALINGS = ("none", "min-max", "z-score", "BN first")


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join([_verdict(result), _steps(result)])


def slope(result: Mapping[str, Any]) -> float:
    """Returns the slope of log steps by log condition number."""
    conditions = np.log([row["condition"] for row in result["rows"]])
    steps = np.log([row["steps"] for row in result["rows"]])
    return float(np.polyfit(conditions, steps, 1)[0])


def statements(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns each expected statement, and True if it holds in every table."""
    tables = {
        name: {row["scaling"]: row["steps"] for row in result["rows"]
               if row["table"] == name}
        for name in {row["table"] for row in result["rows"]}
    }  # fmt: skip
    every = tables.values()
    low, high = PROPORTIONAL
    return {
        "unscaled features need most steps": all(
            each["none"] == max(each.values()) for each in every
        ),
        "standardised ones need no more than those in [0, 1]": all(
            each["z-score"] <= each["min-max"] for each in every
        ),
        "BN first needs as many as standardised ones": all(
            1 / AS_MANY <= each["BN first"] / each["z-score"] <= AS_MANY
            for each in every
        ),
        "steps are in proportion to the condition number": (
            low <= slope(result) <= high
        ),
    }


def verdict(result: Mapping[str, Any]) -> str:
    """Returns the verdict in words."""
    return verdicts.of(*statements(result).values())


def _verdict(result: Mapping[str, Any]) -> str:
    growth = f"Steps grow as the condition number to the power of {slope(result):.2f}."
    return verdicts.expected(statements(result), growth)


def _steps(result: Mapping[str, Any]) -> str:
    rows = []
    for name, variance in result["smallest_variance"].items():
        of = {row["scaling"]: row for row in result["rows"] if row["table"] == name}
        rows.append(
            [name, f"{variance:.1e}"]
            + [f"{of[scaling]['condition']:.1e}" for scaling in SCALINGS]
            + [f"{of[scaling]['steps']:,}" for scaling in SCALINGS]
        )
    header = ["table", "smallest variance"] + [
        f"{quantity}, {scaling}"
        for quantity in ("condition", "steps")
        for scaling in SCALINGS
    ]
    share = result["options"]["tolerance"]
    return (
        "Condition number of the Hessian, and steps of gradient descent until "
        f"{1 - share:.0%} of what can be gained is gained:\n\n"
        + output.markdown(header, rows)
    )
