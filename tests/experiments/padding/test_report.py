"""The verdict on numbers made up."""

import pytest

from experiments.padding import report

ACCURACY = {"none": 0.5, "BN over padding": 0.6, "masked BN": 0.7, "Layer Norm": 0.65}


def result(accuracy=(), change=()):
    values = {
        f"{network}, {kind}": each
        for network in ("feed-forward", "recurrent")
        for kind, each in ACCURACY.items()
    }
    values |= {"recurrent, masked BN, shared": 0.6} | dict(accuracy)
    changes = {"feed-forward, BN over padding": 0.5} | dict(change)
    networks = {
        name: {
            "accuracy": [[0.1, 0.1], [value, value]],
            "short": [[0.1, 0.1], [value, value]],
            "change": [[0.0, 0.0], [changes.get(name, 0.0)] * 2],
        }
        for name, value in values.items()
    }
    return {
        "options": {"seeds": 2},
        "step": [1, 2],
        "padding": 0.3,
        "networks": networks,
    }


def test_holds():
    assert report.verdict(result()) == "holds"
    assert "30% of the rows are padding" in report.table(result())


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"change": {"feed-forward, BN over padding": 0.0}}, 0),
        ({"change": {"feed-forward, masked BN": 0.1}}, 1),
        ({"change": {"recurrent, BN over padding": 0.1}}, 2),
        ({"accuracy": {"feed-forward, masked BN": 0.55}}, 3),
        ({"accuracy": {"recurrent, BN over padding": 0.75}}, 4),
        ({"accuracy": {"recurrent, masked BN, shared": 0.75}}, 5),
    ],
)
def test_holds_partly(changed, place):
    found = result(**changed)
    assert list(report.statements(found).values()) == [i != place for i in range(6)]
    assert report.verdict(found) == "holds partly"


def test_a_network_that_diverged():
    found = result(accuracy={"feed-forward, none": None})
    assert "0.0000 ± 0.0000" in report.table(found)
