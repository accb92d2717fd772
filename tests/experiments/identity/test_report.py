import pytest

from experiments.identity import figure, report


def make_result(train=1e-7, gradient=0.0, scale=0.01, residual=0.1):
    def curves(scale, residual):
        return {
            "scale": [[1.0], [scale]],
            "bias": [[1.0], [0.01]],
            "training": [[1.0], [residual]],
            "evaluation": [[1.0], [0.001]],
        }

    errors = {
        "train": train,
        "inference": 1e-7,
        "train_gradient": gradient,
        "inference_gradient": 0.0,
    }
    return {
        "steps": [1, 2],
        "channels": 5,
        "layer": [{"ratio": 1.0, "errors": errors}],
        "without_affine": 10.0,
        "learnt": {"100": curves(0.01, 0.01), "10": curves(scale, residual)},
    }


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({}, None),
        ({"train": 0.1}, "these values"),
        ({"gradient": 0.1}, "they leave"),
        ({"scale": 0.2}, "training finds"),
        ({"residual": 0.01}, "what remains"),
    ],
)
def test_verdicts(changes, claim):
    result = make_result(**changes)
    lines = report.table(result).split("\n\n")[1].split("\n")[2:]
    assert len(lines) == 4
    for line in lines:
        fails = claim is not None and line.startswith(f"| {claim}")
        assert ("**holds** |" not in line) == fails
    assert len(figure.draw(result).axes) == 3


def test_sizes_in_their_order():
    page = report.table(make_result())
    assert page.index("| 10 | 0.010") < page.index("| 100 | 0.010")
