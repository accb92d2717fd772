import numpy as np
import pytest

from experiments.sync_policies import report


def records(ends):
    """Two records of two seeds."""
    return {"accuracy": [[0.1, 0.1], [ends, ends + 0.002]]}


def result(**of_stale):
    ends = {"exact": 0.9, "local": 0.6, "stale, forward": 0.85, "stale": 0.898}
    by_label = {**ends, "local": 0.3, "stale": 0.895}
    made = {}
    for part, usual in (("examples", ends), ("sorted", by_label)):
        suffix = ", sorted" * (part == "sorted")
        made[part] = {
            f"8 x {examples}{suffix}": {
                name: records(of_stale.get(f"{part}_{examples}", end)
                              if name == "stale" else end)
                for name, end in usual.items()
            }
            for examples in (2, 4)
        }  # fmt: skip
    options = {"examples": [2, 4], "usual": 2, "workers": 8}
    return {"options": options, "parts": made, "steps": [10, 20]}


def test_all_holds():
    assert report.verdict(result()) == "holds"
    text = report.table(result())
    assert "| stale | 0.8990 ± 0.0010 | 0.8990 ± 0.0010 |" in text
    assert "Shards sorted by label" in text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"examples_4": 0.894}, "stale ones lose at most half a point"),
        ({"sorted_4": 0.889}, "and at most a point on sorted shards"),
        ({"examples_2": 0.84}, "without the backward term they learn more slowly"),
    ],
)
def test_each_target_can_be_missed(changed, words):
    found = report.statements(result(**changed))
    assert {name for name, held in found.items() if not held} >= {
        name for name in found if name.startswith(words)
    }
    assert report.verdict(result(**changed)) == "holds partly"


def test_a_training_that_diverged_has_nothing_right():
    made = result()
    made["parts"]["examples"]["8 x 2"]["local"]["accuracy"][-1] = [None, None]
    lost = report._lost(made, "examples", 2)
    np.testing.assert_allclose(lost["local"], 0.901)
