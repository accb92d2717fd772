import pytest

from experiments.initialisation import figure, report


def make_result(with_bn, hidden_only, without_bn):
    networks = {
        "with_bn": [with_bn],
        "hidden_only": [hidden_only],
        "without_bn": [without_bn],
    }
    return {
        "config": {"steps": 5, "seeds": 1},
        "values": [0.1, 1.0, 10.0],
        "accuracy": {"relu": networks},
    }


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        (((0.9, 0.9, 0.1), (0.6, 0.9, 0.9), (0.1, 0.9, None)), ["holds", "holds"]),
        (
            ((0.1, 0.9, 0.1), (0.1, 0.9, 0.9), (0.1, 0.9, None)),
            ["holds partly", "does not hold here"],
        ),
        (((0.1, 0.9, 0.1),) * 3, ["does not hold here"] * 2),
    ],
)
def test_verdicts(accuracies, expected):
    result = make_result(*accuracies)
    lines = report.table(result).split("\n\n")[1].split("\n")[2:]
    assert [line.split("**")[-2] for line in lines] == expected
    assert figure.draw(result).axes
