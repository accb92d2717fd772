"""The tables of the parts of the study, from its JSON alone."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.framework import output
from experiments.library.sync_policies import trainings


def tables(result: Mapping[str, Any]) -> list[str]:
    """Returns the tables of all parts that were measured, as Markdown."""
    return [
        write_part(result)
        for name, write_part in _PARTS.items()
        if name in result["parts"]
    ]


def end(records: Mapping[str, Any]) -> np.ndarray:
    """Returns the accuracy of the last record, `[seeds, ...]`."""
    return _of(records)[-1]


def mean(records: Mapping[str, Any]) -> np.ndarray:
    """Returns the mean accuracy of all records, `[seeds, ...]`.

    A network that learns sooner has a higher mean.
    """
    return _of(records).mean(0)


def _of(records: Mapping[str, Any]) -> np.ndarray:
    """Returns the accuracy, `[records, seeds, ...]`.

    It is None in the JSON where a network overflowed, and 0 here.
    """
    return np.nan_to_num(np.array(records["accuracy"], float), nan=0.0)


def _accuracies(result: Mapping[str, Any], part: str, title: str) -> str:
    settings = _in_order(result["parts"][part])
    names = [
        name
        for name in trainings.NAMES
        if any(name in found for found in settings.values())
    ]
    rows = [
        [
            policy,
            *(
                output.spread(end(found[policy])) if policy in found else "-"
                for found in settings.values()
            ),
        ]
        for policy in names
    ]
    heads = [name.removesuffix(", sorted") for name in settings]
    return (
        f"{title}, test accuracy after {result['steps'][-1]} steps by workers and "
        "examples of each, mean of seeds and half their range:\n\n"
        + output.markdown(["policy", *heads], rows)
    )


def _in_order(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sorts settings by their numbers, because JSON sorts their names as words."""
    return dict(sorted(settings.items(), key=lambda item: sizes(item[0])))


def sizes(setting: str) -> tuple[int, ...]:
    """Returns workers and examples per worker, read from the name of a setting."""
    return tuple(int(each) for each in setting.split(",")[0].split(" x "))


def _rates(result: Mapping[str, Any]) -> str:
    ((setting, found),) = result["parts"]["rates"].items()
    rates = result["options"]["rates"]
    rows = [
        [policy, *(output.spread(column) for column in end(each).T)]
        for policy, each in found.items()
    ]
    return f"Learning rates, {setting}:\n\n" + output.markdown(["policy", *rates], rows)


def _memory(result: Mapping[str, Any]) -> str:
    settings = result["parts"]["memory"]
    memories = result["options"]["memories"]
    rows = [
        [
            f"{setting}, {how}",
            *(
                output.spread(end(found[f"stale, a = {memory}{suffix}"]))
                for memory in memories
            ),
        ]
        for setting, found in settings.items()
        for how, suffix in (("both ways", ""), ("forward", ", forward"))
    ]
    return "Memory a of stale statistics:\n\n" + output.markdown(
        ["workers and examples", *memories], rows
    )


def _switch(result: Mapping[str, Any]) -> str:
    ((setting, found),) = result["parts"]["switch"].items()
    steps = np.array(result["steps"])
    after = np.flatnonzero(steps > steps[-1] // 2)[:3]
    shown = [len(steps) // 2 - 1, *after, len(steps) - 1]
    rows = [
        [
            policy,
            *(output.spread(np.array(each["accuracy"][i], float)) for i in shown),
        ]
        for policy, each in found.items()
    ]
    return (
        f"Images become their negatives after {steps[-1] // 2} steps, {setting}; "
        "accuracy on images of the moment, after so many steps:\n\n"
        + output.markdown(["policy", *steps[shown]], rows)
    )


def _why(result: Mapping[str, Any]) -> str:
    rows = []
    for setting, found in result["parts"]["why"].items():
        for policy, each in found.items():
            cosine, length = (
                np.array(each[name], float).mean((0, 1))
                for name in ("cosine", "length")
            )
            rows.append([setting, policy, _several(cosine), _several(length)])
    return (
        "The gradient of each layer beside the exact one at the same weights, mean of "
        "all records:\n\n"
        + output.markdown(
            ["workers and examples", "policy", "cosine", "relative length"], rows
        )
    )


def _drift(result: Mapping[str, Any]) -> str:
    ((setting, found),) = result["parts"]["drift"].items()
    drift = np.array(found["exact"]["drift"], float).mean(1)  # [records, lags, layers]
    moments = {"first record": drift[0], "last record": drift[-1]}
    rows = [
        [moment, lag, _several(values[i])]
        for moment, values in moments.items()
        for i, lag in enumerate(result["lags"])
    ]
    noise = 1 / np.sqrt(np.prod(sizes(setting)))
    return (
        "How far means move within some steps, in standard deviations of each layer's "
        f"inputs ({setting}, exact; that of a mini-batch is off by {noise:.2f}):\n\n"
        + output.markdown(["at", "steps", "distance, by layer"], rows)
    )


def _several(values: Sequence[float] | np.ndarray) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


_PARTS = {
    "examples": functools.partial(
        _accuracies, part="examples", title="Shuffled shards"
    ),
    "sorted": functools.partial(
        _accuracies, part="sorted", title="Shards sorted by label"
    ),
    "many": functools.partial(_accuracies, part="many", title="Many workers"),
    "rates": _rates,
    "memory": _memory,
    "switch": _switch,
    "why": _why,
    "drift": _drift,
}
