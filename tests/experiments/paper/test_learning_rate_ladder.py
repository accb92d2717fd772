import dataclasses

import pytest

from experiments.framework import verdicts
from experiments.networks import inception_paper as paper
from experiments.networks import inception_training as it
from experiments.paper.learning_rate_ladder import report
from experiments.paper.learning_rate_ladder import study as ladder

# Accuracies of three records, after 10, 20 and 200 steps.
AS_THE_PAPER = {
    "Inception": (0.3, 0.5, 0.8),
    "BN-Baseline": (0.5, 0.81, 0.85),
    "BN-x5": (0.82, 0.85, 0.86),
    "BN-x30": (0.6, 0.83, 0.9),
    "BN-x5-Sigmoid": (0.3, 0.5, 0.7),
    "Inception-Sigmoid": (0.1, 0.1, 0.1),
    "Inception-x5": (0.1, None, 0.1),
    "Inception-x30": (0.1, 0.1, 0.1),
    "BN-x2": (0.7, 0.8, 0.9),
    "Inception, 2 modules": (0.3, 0.5, 0.8),
    "BN-x5, 2 modules": (0.3, 0.8, 0.82),
    "BN-x30, 2 modules": (0.3, 0.5, 0.6),
}


def made(**changes):
    config = ladder.LearningRateLadder(rates=(2,), depths=(2,), seeds=2)
    result = {"config": config.identity()}
    result["runs"] = {
        name: {
            "learning_rate": 0.1,
            "step": [10, 20, 200],
            "accuracy": [[a or 0.1, a or 0.1] for a in curve],
            "loss": [[a, a] for a in curve],
        }
        for name, curve in (AS_THE_PAPER | changes).items()
    }
    return result


def words(result):
    return [verdicts.of(*claim.held) for claim in report.claims(result)]


def test_all_as_in_the_paper():
    assert words(made()) == [verdicts.HOLDS] * 5
    text = report.table(made())
    assert "Fewer steps with Batch Normalization: **holds**." in text
    assert "| BN-x5 | 0.1 | 10 | 10, 10 | 20.0 | 0.8600 | 2.1 | 14.8 | 0.730 |" in text
    assert "here 0.8000, in the paper 0.722" in text
    assert "| 10.0 times fewer | **holds** |" in text
    assert "| 20.0 times fewer, BN-x5 | **holds** |" in text
    assert "BN-Baseline +0.0500, BN-x5 +0.0600, BN-x30 +0.1000 |" in text
    assert "| BN-x5-Sigmoid 0.7000, Inception-Sigmoid 0.1000 | **holds** |" in text
    assert "| 2 | BN-x30 | 0.1 | - | -, - | - | 0.6000 |" in text


@pytest.mark.parametrize(
    ("place", "changes", "word"),
    [
        (0, {"BN-Baseline": (0.5, 0.7, 0.85)}, verdicts.NOT),
        (1, {name: (0.5, 0.6, 0.9) for name in ("BN-x2", "BN-x5", "BN-x30")},
         verdicts.NOT),
        (2, {"BN-x30": (0.1, 0.2, 0.7)}, verdicts.PARTLY),
        (3, {"Inception-x5": (0.3, 0.5, 0.8)}, verdicts.PARTLY),
        (4, {"BN-x5-Sigmoid": (0.1, 0.1, 0.1)}, verdicts.PARTLY),
        (4, {"Inception-Sigmoid": (0.1, 0.1, 0.7), "BN-x5-Sigmoid": (0.1, 0.1, 0.1)},
         verdicts.NOT),
    ],
)  # fmt: skip
def test_each_claim_can_fail(place, changes, word):
    found = words(made(**changes))
    assert found[place] == word
    assert found[:place] + found[place + 1 :] == [verdicts.HOLDS] * 4


def test_what_is_not_finite_is_counted():
    result = made(**{"Inception-x5": (0.1, 0.1, None)})
    assert "| Inception-x5 | 0.1 | 200 | 2 of 2 | 0.1000 |" in report.table(result)


@pytest.mark.exhaustive
def test_rungs():
    rungs = {rung.name: rung for rung in ladder.rungs(ladder.LearningRateLadder())}
    assert list(rungs)[:6] == list(it.RECIPES) == list(paper.BEST)
    assert rungs["Inception-x30"].recipe == it.Recipe(learning_rate=30)
    assert rungs["BN-x10"].recipe == dataclasses.replace(
        it.RECIPES["BN-x5"], learning_rate=10
    )
    deeper = rungs["BN-x5, 5 modules"]
    assert (deeper.recipe, deeper.modules) == (it.RECIPES["BN-x5"], 5)
    assert rungs["Inception"].share == 1
    for modules, names in ladder.DEPTHS.items():
        assert len(names) == modules
        assert {"3c", "4e"} <= set(names)


@pytest.mark.exhaustive
def test_times_fewer_in_the_paper():
    assert round(paper.times_fewer("BN-x5")) == 15  # "14 times", of rounded steps.
    assert paper.times_fewer("BN-Baseline") > 2
    assert paper.times_fewer("BN-x5-Sigmoid") is None
