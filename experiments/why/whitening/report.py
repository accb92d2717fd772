"""The tables of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

UNITS = 32  # The units of the layers that few examples normalise.
NETWORKS = ("whitening", "BN", "none")

# "Costly" means an order of magnitude.
_COSTLY = 10.0
# If others have a variance of 10 instead of 1, most of the output is noise.
_AMPLIFIED = 10.0
# Two seeds differ by less than this.
_CLEARLY = 0.02


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join(
        [
            verdicts.table(verdict(result)),
            _trained(result),
            _cost(result),
            _few(result),
            _correlation(result),
        ]
    )


def verdict(result: Mapping[str, Any]) -> dict[str, list[bool]]:
    """Returns for each claim whether it holds in each case."""
    config = result["config"]
    singular = [row for row in result["few"] if row["examples"] <= UNITS]
    few = [size for size in config["batch_sizes"] if size <= min(config["hidden"])]
    return {
        "whitening is costly": [
            row["ratio"] >= _COSTLY for row in result["cost"]
        ],
        "with no more examples than units the covariance is singular": [
            row["rank"] < UNITS for row in singular
        ],
        "and whitening amplifies what the batch knows nothing of, BN does not": [
            row["variance"]["whitening"] > _AMPLIFIED > row["variance"]["BN"]
            for row in singular
        ],
        "a network with whitening fails on such batches": [
            ends(result, "whitening", size)[0] < ends(result, "BN", size)[0] - _CLEARLY
            for size in few
        ],
        "BN speeds up training although it decorrelates nothing": [
            ends(result, "BN", size)[0] > ends(result, "none", size)[0]
            for size in config["batch_sizes"]
        ],
    }  # fmt: skip


def ends(result: Mapping[str, Any], norm: str, size: int) -> tuple[float, int]:
    """Returns the mean accuracy at the end and the number of seeds that diverged."""
    run = result["trained"][f"{norm}, {size}"]
    lost = sum(not finite for finite in run["finite"][-1])
    return float(np.mean(run["accuracy"][-1])), lost


def _trained(result: Mapping[str, Any]) -> str:
    rows = []
    for size in result["config"]["batch_sizes"]:
        for norm in NETWORKS:
            run = result["trained"][f"{norm}, {size}"]
            seeds = run["accuracy"][-1]
            _, lost = ends(result, norm, size)
            rows.append(
                [size, norm, f"{np.mean(run['accuracy'][0]):.3f}",
                 f"{np.mean(seeds):.3f}", f"{min(seeds):.3f} to {max(seeds):.3f}",
                 f"{lost} of {len(seeds)}"]
            )  # fmt: skip
    first, last = result["steps"][0], result["steps"][-1]
    header = ["batch size", "normalisation", f"accuracy after {first} steps",
              f"after {last}", "seeds", "diverged"]  # fmt: skip
    units = " and ".join(str(each) for each in result["config"]["hidden"])
    return (
        f"Networks with layers of {units} units, test accuracy by running statistics:"
        "\n\n" + output.markdown(header, rows)
    )


def _cost(result: Mapping[str, Any]) -> str:
    rows = [
        [row["units"], f"{row['ms']['BN']:.3g}", f"{row['ms']['whitening']:.3g}",
         f"{row['ratio']:.3g}"]
        for row in result["cost"]
    ]  # fmt: skip
    header = ["units", "BN, ms", "whitening, ms", "whitening over BN"]
    return (
        "Time of output and gradient of a layer, 256 examples; the fastest of 40 "
        "rounds in turns:\n\n" + output.markdown(header, rows)
    )


def _few(result: Mapping[str, Any]) -> str:
    rows = []
    for row in result["few"]:
        m = row["examples"]
        told = [f"{m / (m - d - 2):.2f}" if m > d + 2 else "" for d in (1, UNITS)]
        rows.append(
            [m, row["rank"], f"{row['variance']['BN']:.3g}", told[0],
             f"{row['variance']['whitening']:.3g}", told[1]]
        )  # fmt: skip
    header = ["examples", "rank", "BN", "told by theory", "whitening",
              "told by theory"]  # fmt: skip
    return (
        "Variance of other examples, normalised by the statistics of a batch of "
        f"{UNITS} units, which would be 1 by the true ones:\n\n"
        + output.markdown(header, rows)
    )


def _correlation(result: Mapping[str, Any]) -> str:
    found = result["correlation"]
    return (
        "Mean absolute correlation of two units of a layer: "
        f"{found['none']:.3g} as they are, {found['BN']:.3g} after BN, "
        f"{found['whitening']:.3g} after whitening."
    )
