"""Summarises Figure 1: a JSON, a table and the distance to the paper's curves."""

from typing import Any

import numpy as np

from experiments.data import datasets
from experiments.framework import output
from experiments.networks import mlp
from experiments.paper.figure1 import paper

Records = dict[str, np.ndarray]


def summarize(
    config: dict[str, Any], steps: np.ndarray, records: Records
) -> dict[str, Any]:
    """Returns the content of the JSON: everything that is plotted or printed.

    Args:
      config: the options that decided the numbers.
      steps: the steps after which records were made, `[records]`.
      records: the result of `figure1.train`.
    """
    result: dict[str, Any] = {
        "config": config,
        "step": steps.tolist(),
        "accuracy": {},
        "percentiles": {},
        "unit": {},
    }
    mean = {}
    for network in mlp.NETWORKS:
        accuracy = records[f"{network}/accuracy"]
        mean[network] = accuracy.mean(1)
        result["accuracy"][network] = _rounded(accuracy)
        traces = records[f"{network}/percentiles"][:, 0]
        unit = typical_unit(traces)
        result["unit"][network] = unit
        result["percentiles"][network] = _rounded(traces[:, :, unit])
        if (
            config["dataset"] == "mnist"
            and np.isin(steps, paper.PERCENTILE_STEPS).any()
        ):
            distances = trace_distances(network, steps, traces)
            result.setdefault("traces_to_paper", {})[network] = {
                "typical": round(float(distances[unit]), 4),
                "nearest": round(float(distances.min()), 4),
            }
    result["table"] = _table(steps, mean)
    if config["dataset"] == "mnist":
        result["distance_to_paper"] = {
            network: distance_to_paper(network, steps, mean[network])
            for network in mlp.NETWORKS
        }
    return result


def typical_unit(traces: np.ndarray) -> int:
    """Returns the unit whose percentiles are nearest to the median over all units.

    Args:
      traces: the percentiles, `[records, percentiles, units]`.
    """
    median = np.median(traces, axis=-1, keepdims=True)
    return int(np.abs(traces - median).mean((0, 1)).argmin())


def distance_to_paper(
    network: str, steps: np.ndarray, accuracy: np.ndarray
) -> float | None:
    """Returns the mean absolute difference from the paper's accuracies.

    It is taken at the vertices of the paper's curve, about every 4,000 steps. It is
    None for a run that ends before the first vertex.
    """
    pairs = zip(paper.ACCURACY_STEPS, paper.ACCURACY[network], strict=False)
    differences = [
        abs(float(np.interp(step, steps, accuracy)) - value)
        for step, value in pairs
        if step <= steps[-1]
    ]
    return round(float(np.mean(differences)), 4) if differences else None


def trace_distances(network: str, steps: np.ndarray, traces: np.ndarray) -> np.ndarray:
    """Returns the distance of each unit's percentiles from the paper's, `[units]`.

    It is the mean absolute difference at the steps that both have.

    Args:
      network: one of `mlp.NETWORKS`.
      steps: the steps after which records were made, `[records]`.
      traces: the percentiles, `[records, percentiles, units]`.
    """
    _, ours, theirs = np.intersect1d(steps, paper.PERCENTILE_STEPS, return_indices=True)
    known = np.array(paper.TRACES[network])[:, theirs]
    return np.abs(traces[ours] - known.T[:, :, None]).mean((0, 1))


def table(result: dict[str, Any]) -> str:
    """Returns the result in a few lines of Markdown."""
    rows = result["table"]
    at = sorted(rows["with_bn"]["accuracy"], key=int)
    header = ["network", *(f"{int(step):,} steps" for step in at), "best",
              "steps to the best accuracy without BN"]  # fmt: skip
    cells = []
    for network in mlp.NETWORKS:
        row = rows[network]
        steps = row["steps_to_best_without_bn"]
        values = [*(row["accuracy"][step] for step in at), row["best"]]
        cells.append(
            [_name(network), *(f"{value:.4f}" for value in values),
             "never" if steps is None else f"{steps:,}"]
        )  # fmt: skip
    lines = [
        f"Test accuracy, mean of {result['config']['seeds']} seed(s), "
        f"{datasets.PIXELS[result['config']['dataset']].title}:",
        "",
        output.markdown(header, cells),
    ]
    with_bn, without_bn = (
        rows[network]["steps_to_best_without_bn"] for network in mlp.NETWORKS
    )
    if with_bn:
        ratio = f"{without_bn / with_bn:.1f}"
        lines += ["", f"With BN that takes {ratio} times fewer steps."]
    for network, distance in result.get("distance_to_paper", {}).items():
        if distance is not None:
            lines.append(
                f"Mean distance to the paper's curve {_name(network)}: {distance:.4f}."
            )
    for network, distance in result.get("traces_to_paper", {}).items():
        lines.append(
            f"Mean distance to the paper's percentiles {_name(network)}: typical unit "
            f"{distance['typical']:.2f}, the nearest of all {distance['nearest']:.2f}."
        )
    return "\n".join(lines)


def _name(network: str) -> str:
    return network.replace("_", " ").replace("bn", "BN")


def _table(steps: np.ndarray, mean: dict[str, np.ndarray]) -> dict[str, Any]:
    best = mean["without_bn"].max()
    rows = {}
    for network, accuracy in mean.items():
        reached = np.flatnonzero(accuracy >= best)
        rows[network] = {
            "accuracy": {
                str(step): round(float(np.interp(step, steps, accuracy)), 4)
                for step in sorted({4000, 12_000, 50_000, int(steps[-1])})
                if steps[0] <= step <= steps[-1]
            },
            "best": round(float(accuracy.max()), 4),
            "steps_to_best_without_bn": int(steps[reached[0]])
            if len(reached)
            else None,
        }
    return rows


def _rounded(array: np.ndarray) -> list:
    return np.round(array.astype(np.float64), 5).tolist()
