"""The verdicts on numbers made up."""

import numpy as np
import pytest

from experiments.covariate_shift import report


def network(accuracy=0.9, movement=0.1, shift=0.2, change=0.5):
    def records(value):
        return np.full((8, 2), value).tolist()

    def by_layer(value):
        return np.full((8, 2, 3), value).tolist()

    return {
        "accuracy": records(accuracy),
        "movement": np.full((2, 3), movement).tolist(),
        "shift_distance": by_layer(shift),
        "shift_cosine": by_layer(0.5),
        **{
            name: records(change)
            for name in ("loss_range", "gradient_change", "relative_change",
                         "smoothness", "train_loss")
        },
    }  # fmt: skip


def result(**changed):
    networks = {
        "without BN": network(0.8, 0.3, 0.3, 0.9),
        "BN": network(),
        "noisy BN": network(0.7, 0.4),
        "noise without BN": network(0.1, 0.4),
    }
    for name, values in changed.items():
        networks[name.replace("_", " ")] = network(**values)
    return {"options": {"seeds": 2}, "networks": networks}


def test_the_paper_holds_where_jumps_cost_accuracy():
    assert report.verdict(result()) == "holds"
    assert list(report.later(result()).values()) == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"movement": 0.5}, 0),
        ({"shift": 0.5}, 1),
        ({"accuracy": 0.705}, 2),
    ],
)
def test_the_paper_holds_partly(changed, place):
    found = result(BN=changed)
    assert list(report.papers(found).values()) == [i != place for i in range(3)]
    assert report.verdict(found) == "holds partly"


def test_the_later_explanation():
    found = result(noisy_BN={"accuracy": 0.895, "movement": 0.9})
    assert all(report.later(found).values())
    assert "on smoothness instead: holds." in report.table(found)
    rough = result(BN={"change": 2.0})
    assert list(report.later(rough).values())[:2] == [False, False]


def test_values_that_are_not_finite():
    found = result()
    found["networks"]["without BN"]["loss_range"][0][0] = None
    assert "nan" in report.table(found)
