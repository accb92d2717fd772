import json

import pytest

from experiments.crops_and_ensemble import figure, network, report

NETWORKS = len(network.MEMBERS)


def made_up(crops, ensemble, standard_error=0.001):
    """A result with these drops of each of two seeds."""
    counts = [str(count) for count in range(1, NETWORKS + 1)]
    errors = {count: [[0.3, 0.32]] * (NETWORKS if count == "1" else 1)
              for count in counts}  # fmt: skip
    return {
        "command": "python -m experiments crops_and_ensemble",
        "dataset": "digits",
        "origin": "made up",
        "test_images": 1000,
        "distinct_crops": 48,
        "members": list(network.MEMBERS),
        "single": {"1": [0.4, 0.5], "144": [0.35, 0.36]},
        "errors": {"1": errors, "144": errors},
        "drops": {
            "crops": {"seeds": crops, "standard_error": standard_error},
            "ensemble": {"seeds": ensemble, "standard_error": standard_error},
        },
    }


@pytest.mark.parametrize(
    ("crops", "ensemble", "expected"),
    [
        ([0.01, 0.02], [0.03, 0.01], "holds"),
        ([0.01, 0.02], [-0.01, 0.05], "holds partly"),  # Not with every seed.
        ([0.001, 0.002], [0.03, 0.01], "holds partly"),  # May be chance.
        ([-0.01, -0.02], [-0.03, 0.0], "does not hold here"),
    ],
)
def test_verdict(crops, ensemble, expected):
    assert report.verdict(made_up(crops, ensemble)) == expected


def test_table_says_what_was_measured():
    text = report.table(made_up([0.01, 0.02], [0.03, 0.01]))
    assert "Verdict: holds. 144 crops instead of one lower the error by 1.50" in text
    assert "seeds -2.00 to -1.00; standard error 0.10" in text
    assert "| 144 crops, six networks | 31.00 % (30.00 to 32.00) | 20.1 % |" in text
    assert "| 144 crops, one network | 35.50 % (35.00 to 36.00) | 22.0 % |" in text
    assert "made up" in text


def test_a_rise_is_called_so():
    text = report.table(made_up([-0.01, -0.02], [0.03, 0.01]))
    assert "144 crops instead of one raise the error by 1.50 points" in text


def test_pages(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(made_up([0.01, 0.02], [0.03, 0.01])))
    assert "Verdict" in report.write(path)
    assert path.with_suffix(".png").stat().st_size > 10_000


def test_figure_has_a_curve_for_one_crop_and_one_for_all():
    left, right = figure.draw(made_up([0.01, 0.02], [0.03, 0.01])).axes
    labels = [line.get_label() for line in left.lines]
    assert [label for label in labels if not label.startswith("_")][:2] == [
        "one crop",
        "144 crops",
    ]
    assert len(right.patches) == 3
