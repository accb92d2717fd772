"""The tables and the verdict of the study, from its JSON alone."""

import statistics
from collections.abc import Mapping
from typing import Any

from experiments.framework import output, verdicts

ERRORS = {"one crop": 0.252, "144 crops": 0.2199, "six networks": 0.201}
"""The top-1 errors of BN-Inception on the validation set of ImageNet."""


# A drop below this many standard errors may be due to chance in the test images.
SURE = 2.0

STAGES = {
    "crops": "144 crops instead of one",
    "ensemble": "six networks instead of one",
}


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join(
        [
            f"Verdict: {verdict(result)}. {_why(result)}",
            _stages(result),
            _members(result),
            f"Data: {result['dataset']}, {result['origin']}; errors over "
            f"{result['test_images']:,} test images.",
        ]
    )


def verdict(result: Mapping[str, Any]) -> str:
    """Returns in words whether each stage lowers the error."""
    return verdicts.of(*map(_lowers, result["drops"].values()))


def _lowers(drop: Mapping[str, Any]) -> bool:
    """Returns True if the error falls with every seed and by more than chance."""
    mean = statistics.fmean(drop["seeds"])
    return min(drop["seeds"]) > 0 and mean > SURE * drop["standard_error"]


def _why(result: Mapping[str, Any]) -> str:
    parts = []
    for stage, words in STAGES.items():
        drop = result["drops"][stage]
        mean = 100 * statistics.fmean(drop["seeds"])
        parts.append(
            f"{words} {'lower' if mean > 0 else 'raise'} the error by {abs(mean):.2f} "
            f"points (seeds {_range([-100 * each for each in drop['seeds']], '+.2f')}; "
            f"standard error {100 * drop['standard_error']:.2f})"
        )
    text = " and ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _stages(result: Mapping[str, Any]) -> str:
    errors = result["errors"]
    last = str(len(result["members"]))
    single = result["single"]
    rows = [
        ["one crop, one network", _with_range(single["1"]), _paper("one crop")],
        ["144 crops, one network", _with_range(single["144"]), _paper("144 crops")],
        ["144 crops, six networks", _mean(errors["144"][last]),
         _paper("six networks")],
        ["one crop, six networks", _mean(errors["1"][last]), ""],
        ["144 crops, one of the six (mean)", _mean(errors["144"]["1"]), ""],
    ]  # fmt: skip
    header = ["evaluation", "test error (seeds)", "paper, ImageNet"]
    return "Errors by stage:\n\n" + output.markdown(header, rows)


def _members(result: Mapping[str, Any]) -> str:
    errors = result["errors"]
    rows = [
        [name, _with_range(errors["1"]["1"][place]),
         _with_range(errors["144"]["1"][place])]
        for place, name in enumerate(result["members"])
    ]  # fmt: skip
    single = result["single"]
    rows.append(["unchanged", _with_range(single["1"]), _with_range(single["144"])])
    header = ["network", "one crop", "144 crops"]
    return (
        "The six networks, and the one that they are compared with:\n\n"
        + output.markdown(header, rows)
    )


def _paper(stage: str) -> str:
    return f"{100 * ERRORS[stage]:.1f} %"


def _mean(choices: list[list[float]]) -> str:
    """Returns mean and range over seeds of the mean over networks, as text."""
    return _with_range([statistics.fmean(each) for each in zip(*choices, strict=True)])


def _with_range(seeds: list[float]) -> str:
    percents = [100 * each for each in seeds]
    return f"{statistics.fmean(percents):.2f} % ({_range(percents, '.2f')})"


def _range(values: list[float], form: str) -> str:
    return f"{min(values):{form}} to {max(values):{form}}"
