"""The tables of the ladder, from its JSON alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.framework import curves, output, verdicts
from experiments.networks import inception_paper as paper

OF_DEPTHS = ("Inception", "BN-x5", "BN-x30")
"""The configurations that are trained at each further depth."""

_HALF = 2.0  # This stands for "less than half the steps" (Section 4.2.2).
_MANY = 5.0  # It is the goal at this size; the paper has 14.
# With ten classes, chance is .1. Half of the way to 1 is more than a few classes.
_CHANCE = 0.15
_TRAINS = 0.55


def of_depth(name: str, modules: int) -> str:
    """Returns the name of a configuration with another number of modules."""
    return f"{name}, {modules} modules"


class Claim(NamedTuple):
    """An expected claim, the numbers that decide it, and whether each part holds."""

    words: str
    measured: str
    held: list[bool]


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    made = claims(result)
    whole = verdicts.of(*(held for claim in made for held in claim.held))
    rows = [
        [words, measured, f"**{verdicts.of(*held)}**"] for words, measured, held in made
    ]
    parts = [
        f"Fewer steps with Batch Normalization: **{whole}**.",
        output.markdown(["claim", "measured", "verdict"], rows),
        _ladder(result),
        _without(result),
    ]
    if result["config"]["rates"]:
        parts.append(_rates(result))
    if result["config"]["depths"]:
        parts.append(_depths(result))
    return "\n\n".join(parts)


def claims(result: Mapping[str, Any]) -> list[Claim]:
    """Returns the claims of the study, and whether they hold."""
    runs = result["runs"]
    ratios = {
        name: curves.times_fewer(run, runs["Inception"]) or 0
        for name, run in runs.items()
    }
    fastest = max(_rate_names(result), key=lambda name: ratios[name])
    best = {name: curves.best(run) for name, run in runs.items()}
    with_bn = ("BN-Baseline", "BN-x5", "BN-x30")
    too_fast = ("Inception-x5", "Inception-x30")
    sigmoids = ("BN-x5-Sigmoid", "Inception-Sigmoid")
    ends = {name: best_at_end(runs[name]) for name in too_fast}
    return [
        Claim(
            "BN-Baseline takes less than half the steps",
            f"{ratios['BN-Baseline']:.1f} times fewer",
            [ratios["BN-Baseline"] > _HALF],
        ),
        Claim(
            f"the best configuration with BN takes at least {_MANY:.0f} times fewer",
            f"{ratios[fastest]:.1f} times fewer, {fastest}",
            [ratios[fastest] >= _MANY],
        ),
        Claim(
            "each configuration with BN and relu ends above Inception",
            _listed({name: best[name] - best["Inception"] for name in with_bn}, "+.4f"),
            [best[name] > best["Inception"] for name in with_bn],
        ),
        Claim(
            "without BN 5 and 30 times the learning rate do not train",
            _listed(ends, ".4f"),
            [end <= _CHANCE for end in ends.values()],
        ),
        Claim(
            "sigmoids train with BN, and stay at chance without",
            _listed({name: best[name] for name in sigmoids}, ".4f"),
            [best[sigmoids[0]] >= _TRAINS, best[sigmoids[1]] <= _CHANCE],
        ),
    ]


def _listed(numbers: Mapping[str, float], style: str) -> str:
    return ", ".join(f"{name} {format(each, style)}" for name, each in numbers.items())


def best_at_end(run: Mapping[str, Any]) -> float:
    """Returns the best accuracy of any seed at the last record."""
    return max(run["accuracy"][-1])


def _rate_names(result: Mapping[str, Any]) -> list[str]:
    """Returns the names of BN with all changes, sorted by learning rate."""
    rates = sorted({5, 30, *result["config"]["rates"]})
    return [f"BN-x{rate:g}" for rate in rates]


def _ladder(result: Mapping[str, Any]) -> str:
    runs = result["runs"]
    header = ["model", "learning rate", "steps", "of the seeds", "times fewer",
              "best accuracy", "the paper: 10⁶ steps", "times fewer",
              "best accuracy"]  # fmt: skip
    rows = [
        [name, *_cells(runs, name, "Inception"),
         _number(paper.STEPS.get(name), ".1f"), _number(paper.times_fewer(name), ".1f"),
         _number(paper.BEST[name], ".3f")]
        for name in paper.BEST
    ]  # fmt: skip
    target = curves.best(runs["Inception"])
    return (
        f"Steps to the best accuracy of Inception, here {target:.4f}, in the paper "
        f"{paper.BEST['Inception']:.3f}:\n\n" + output.markdown(header, rows)
    )


def _cells(runs: Mapping[str, Any], name: str, baseline: str) -> list[str]:
    run, target = runs[name], curves.best(runs[baseline])
    each = curves.steps_of_seeds(run, target)
    return [
        f"{run['learning_rate']:g}",
        _number(curves.steps_to(run, target), ",d"),
        ", ".join(_number(steps, ",d") for steps in each),
        _number(curves.times_fewer(run, runs[baseline]), ".1f"),
        f"{curves.best(run):.4f}",
    ]


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def _without(result: Mapping[str, Any]) -> str:
    rows = []
    for name in ("Inception-x5", "Inception-x30"):
        run = result["runs"][name]
        lost = sum(loss is None for loss in run["loss"][-1])
        seeds = len(run["accuracy"][-1])
        rows.append(
            [name, f"{run['learning_rate']:g}", f"{run['step'][-1]:,}",
             f"{lost} of {seeds}", f"{best_at_end(run):.4f}"]
        )  # fmt: skip
    header = ["model", "learning rate", "steps", "seeds not finite",
              "accuracy at the end, best seed"]  # fmt: skip
    return "Higher learning rates without BN:\n\n" + output.markdown(header, rows)


def _rates(result: Mapping[str, Any]) -> str:
    rows = [
        [name, *_cells(result["runs"], name, "Inception")]
        for name in _rate_names(result)
    ]
    header = ["model", "learning rate", "steps", "of the seeds", "times fewer",
              "best accuracy"]  # fmt: skip
    return (
        "The way to fewer steps: learning rates of BN with all changes:\n\n"
        + output.markdown(header, rows)
    )


def _depths(result: Mapping[str, Any]) -> str:
    runs, rows = result["runs"], []
    ladders = {len(result["config"]["hp"]["modules"]): OF_DEPTHS}
    for modules in result["config"]["depths"]:
        ladders[modules] = tuple(of_depth(name, modules) for name in OF_DEPTHS)
    for modules, names in sorted(ladders.items()):
        for plain, name in zip(OF_DEPTHS, names, strict=True):
            rows.append([modules, plain, *_cells(runs, name, names[0])])
    header = ["modules", "model", "learning rate", "steps", "of the seeds",
              "times fewer", "best accuracy"]  # fmt: skip
    return (
        "The way to fewer steps: depth, each against its own Inception:\n\n"
        + output.markdown(header, rows)
    )
