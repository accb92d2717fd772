import pytest

from experiments.whitening import figure, report


def make_result(ratio=50.0, rank=15, variance=1e4, whitened=0.3, plain=0.6):
    def run(accuracy, finite=True):
        curve = [[0.2, 0.2], [accuracy, accuracy]]
        return {"accuracy": curve, "finite": [[True, True], [True, finite]]}

    trained = {}
    for size in (16, 256):
        trained[f"BN, {size}"] = run(0.8)
        trained[f"none, {size}"] = run(plain)
        trained[f"whitening, {size}"] = run(whitened if size == 16 else 0.8, size > 16)
    return {
        "config": {"batch_sizes": [16, 256], "hidden": [32, 32]},
        "steps": [1, 2],
        "cost": [{"units": 8, "ms": {"BN": 1.0, "whitening": 9.0}, "ratio": ratio}],
        "few": [
            {
                "examples": examples,
                "rank": rank if examples == 16 else 32,
                "variance": {"BN": 1.1, "whitening": variance},
            }
            for examples in (16, 64)
        ],
        "correlation": {"none": 0.3, "BN": 0.3, "whitening": 0.0},
        "trained": trained,
    }


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({}, None),
        ({"ratio": 3.0}, "whitening is costly"),
        ({"rank": 32}, "with no more examples"),
        ({"variance": 2.0}, "and whitening"),
        ({"whitened": 0.8}, "a network with"),
        ({"plain": 0.9}, "BN speeds up"),
    ],
)
def test_verdicts(changes, claim):
    result = make_result(**changes)
    lines = report.table(result).split("\n\n")[1].split("\n")[2:]
    assert len(lines) == 5
    for line in lines:
        fails = claim is not None and line.startswith(f"| {claim}")
        assert line.endswith("**does not hold here** |" if fails else "**holds** |")
    assert len(figure.draw(result).axes) == 3


def test_table_names_divergence():
    page = report.table(make_result())
    assert "| 16 | whitening | 0.200 | 0.300 | 0.300 to 0.300 | 1 of 2 |" in page
    assert "| 64 | 32 | 1.1 | 1.05 | 1e+04 | 2.13 |" in page
