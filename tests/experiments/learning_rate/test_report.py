import pytest

from experiments.learning_rate import figure, report


def make_result(with_bn, without_bn):
    return {
        "config": {"steps": 5, "seeds": 1},
        "values": [0.1, 1.0, 10.0],
        "accuracy": {"relu": {"with_bn": [with_bn], "without_bn": [without_bn]}},
    }


@pytest.mark.parametrize(
    ("with_bn", "without_bn", "expected"),
    [
        ((0.8, 0.9, 0.9), (0.8, 0.85, None), ["holds", "holds", "holds"]),
        ((0.9, 0.8, 0.1), (0.9, 0.9, None), ["does not hold here"] * 2 + ["holds"]),
        ((0.1, 0.2, 0.2), (0.9, 0.9, 0.9), ["does not hold here"] * 3),
        ((0.1, 0.9, 0.1), (0.1, 0.1, 0.2), ["holds"] * 3),
    ],
)
def test_verdicts(with_bn, without_bn, expected):
    result = make_result(with_bn, without_bn)
    lines = report.table(result).split("\n\n")[1].split("\n")[2:]
    assert [line.split("**")[-2] for line in lines] == expected
    assert figure.draw(result).axes


def test_ranges():
    page = report.table(make_result((0.8, 0.9, 0.9), (0.8, 0.85, None)))
    assert "| relu | with BN | 0.900 | 1 | 1 to 10 | 2 | never |" in page
    assert "| relu | without BN | 0.850 | 1 | 1 to 1 | 1 | 10 |" in page
