"""The tables and the verdict of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from experiments.framework import curves, output, verdicts

WORST = -1700.0
"""About the return of a pendulum that hangs down for a whole episode."""
SOLVED = -200.0
"""A return that only a pendulum that is swung up and held reaches."""


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    parts = [_agents(result), _choice(result)]
    if len(result["agents"]) == 4:
        parts.insert(0, verdicts.expected(statements(result)))
    return "\n\n".join(parts)


def statements(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns each expected statement, and True if the result confirms it."""
    area = {name: returns(result, name).mean(0) for name in result["agents"]}
    last = {name: _last(result, name) for name in result["agents"]}
    renorm, norm, target, none = (
        "Batch Renormalization", "Batch Normalization", "none, target networks", "none"
    )  # fmt: skip

    def better(a: str, b: str) -> bool:
        """Returns whether the paired difference is positive, with its interval."""
        low, _ = interval(area[a] - area[b])
        return bool(low > 0)

    return {
        "Renorm learns in fewer steps than target networks": better(renorm, target),
        "BN learns in fewer steps than target networks": better(norm, target),
        f"without both, the return stays below {SOLVED:.0f}": bool(
            last[none].mean() < SOLVED
        ),
        "Renorm is no worse than BN": not better(norm, renorm),
    }


def verdict(result: Mapping[str, Any]) -> str:
    """Returns the verdict in words."""
    return verdicts.of(*statements(result).values())


def returns(result: Mapping[str, Any], name: str) -> np.ndarray:
    """Returns the mean return at every record, `[records, seeds]`."""
    return np.array(result["agents"][name]["returns"], np.float64)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the mean over seeds (Student's t)."""
    if len(values) < 2:
        return -np.inf, np.inf
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    return values.mean() - half, values.mean() + half


def steps_to(result: Mapping[str, Any], name: str) -> list[int | None]:
    """Returns the steps after which each seed first reaches `SOLVED`."""
    found = returns(result, name).T
    return [curves.first(result["step"], seed, SOLVED) for seed in found]


def _last(result: Mapping[str, Any], name: str) -> np.ndarray:
    return curves.quarters(returns(result, name))[1]


def _agents(result: Mapping[str, Any]) -> str:
    rows = []
    for name in result["agents"]:
        reached = [steps for steps in steps_to(result, name) if steps is not None]
        seeds = returns(result, name).shape[1]
        rows.append(
            [
                name,
                output.spread(_last(result, name), 0),
                output.spread(returns(result, name).mean(0), 0),
                f"{int(np.median(reached)):,}" if 2 * len(reached) > seeds else "",
                f"{len(reached)} of {seeds}",
            ]
        )
    header = ["agent", "return, last quarter", "mean of all records",
              f"steps to {SOLVED:.0f}, median", "seeds that reach it"]  # fmt: skip
    return (
        f"Returns of an episode in {result['step'][-1]:,} steps. Mean of "
        f"{result['options']['seeds']} seeds and half their range; 0 is best.\n\n"
        + output.markdown(header, rows)
    )


def _choice(result: Mapping[str, Any]) -> str:
    rates = list(result["options"]["rates"])
    rows = [
        [name, *(f"{found['choice'][str(rate)]:.0f}" for rate in rates), found["rate"]]
        for name, found in result["agents"].items()
    ]
    return (
        "Learning rates: mean return of all records, by "
        f"{result['options']['seeds_of_choice']} other seeds.\n\n"
        + output.markdown(["agent", *map(str, rates), "chosen"], rows)
    )
