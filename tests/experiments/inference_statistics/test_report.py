"""The verdict on numbers made up."""

import copy

import pytest

from experiments.inference_statistics import report

SEEDS = [0.9, 0.9]


def of_size(ratio=1.0, exact=0.9, ema=0.9):
    distances = {name: [[0.1, 0.2]] * 2 for name in ("mean", "var")}
    during = {
        name: {**{q: [v] for q, v in distances.items()}, "accuracy": [SEEDS]}
        for name in ("truth", "ema, biased", "debiased", "window", "cumulative",
                     "batch")
    }  # fmt: skip
    ratios = {"ratio": [[ratio, 1.0]] * 2}
    during["ema"] = copy.deepcopy(during["debiased"]) | {"accuracy": [[ema, ema]]}
    after = {
        name: distances | ratios | {"accuracy": [exact, exact]}
        for name in ("algorithm 2", "algorithm 2, biased")
    }
    return {"during": during, "after": after}


def result(**sizes):
    return {
        "options": {"seeds": 2},
        "step": [100],
        "sizes": {name[1:]: each for name, each in sizes.items()},
    }


def test_holds():
    found = result(m2=of_size(), m16=of_size(), m4=of_size())
    assert report.verdict(found) == "holds"
    text = report.table(found)
    assert text.startswith("Verdict: holds.")
    assert text.index("| 4 |") < text.index("| 16 |")  # Sorted as numbers.


@pytest.mark.parametrize(
    ("bad", "statement"),
    [
        (of_size(ratio=0.9), "with m / (m - 1) the variance is right"),
        (of_size(ema=0.88), "the moving average tracks the accuracy"),
        (of_size(exact=0.7), "the average over batches at fixed weights"),
    ],
)
def test_holds_partly(bad, statement):
    found = result(m2=bad, m8=of_size())
    assert report.verdict(found) == "holds partly"
    failed = {name: sizes for name, sizes in report.statements(found).items() if sizes}
    (name,) = failed
    assert name.startswith(statement)
    assert failed[name] == [2]
    assert "not at 2" in report.table(found)


def test_does_not_hold():
    bad = of_size(ratio=2.0, exact=0.5, ema=0.5)
    assert report.verdict(result(m2=bad)) == "does not hold here"
