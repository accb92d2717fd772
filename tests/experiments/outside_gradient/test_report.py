import pytest

from experiments.outside_gradient import figure, layers, report


def make_result(**changes):
    """Returns a result of three records that agrees with the paper, plus `changes`."""
    unit = {
        "BN": {"bias": [0.0] * 4, "scale": [1.0] * 4, "loss": [0.6] * 4},
        "centred outside": {
            "bias": [0.0, 1.0, 2.0, changes.get("grown", 3.0)],
            "scale": [1.0] * 4,
            "loss": [0.6, 0.6, 0.6, changes.get("loss", 0.6)],
        },
    }
    unit["centred inside"] = unit["BN"]
    worse = {"bias": [0.0, 5.0, 7.0, changes.get("worse", 9.0)]}
    unit["centred and scaled outside"] = unit["BN"] | worse

    def network(biases, finite=True):
        return {
            "bias": [[each] for each in biases],
            "loss": [[0.5], [0.4], [0.3 if finite else None]],
            "accuracy": [[0.5], [0.6], [0.7]],
            "finite": [[True], [True], [finite]],
        }

    return {
        "config": {"learning_rate": 1.0, "steps": 3},
        "steps": [1, 2, 3],
        "target_mean": 1.0,
        "unit": unit,
        "networks": {
            "BN": network([0.0, 0.0, changes.get("bn", 0.0)]),
            "centred inside": network([0.0] * 3),
            "centred outside": network(
                [1.0, 2.0, changes.get("network")], changes.get("finite", False)
            ),
            "centred and scaled outside": network([1.0, 2.0, None], finite=False),
        },
    }


@pytest.mark.parametrize(
    ("changes", "claim", "verdict"),
    [
        ({}, None, None),
        ({"grown": 2.5}, "centred outside", "does not hold here"),
        ({"loss": 0.3}, "while its loss", "does not hold here"),
        ({"worse": 2.0}, "scaled outside too", "holds partly"),
        ({"network": 1.5}, "in a network", "holds partly"),
        ({"network": 3.0, "finite": True}, "and it blows up", "holds partly"),
        ({"bn": 1.0}, "with BN neither", "holds partly"),
    ],
)
def test_verdicts(changes, claim, verdict):
    result = make_result(**changes)
    lines = report.table(result).split("\n\n")[1].split("\n")[2:]
    assert len(lines) == 6
    assert len(figure.draw(result).axes) == 3
    for line in lines:
        fails = claim is not None and line.startswith(f"| {claim}")
        assert line.endswith(f"**{verdict if fails else 'holds'}** |"), line
    assert set(layers.VARIANTS) == set(result["unit"])
