import pytest

from experiments.practice.placement import report, study

LAST = {
    "relu, before": 0.9,
    "relu, after": 0.88,
    "relu, none": 0.8,
    "before the sum, per channel": 0.9,
    "after the sum, per channel": 0.8,
    "before the sum, per activation": 0.8,
}


def result():
    rows = {name: [[0.1, 0.1], [v - 0.01, v + 0.01]] for name, v in LAST.items()}
    connected = {name: row for name, row in rows.items() if name.startswith("relu")}
    residual = {name: row for name, row in rows.items() if "sum" in name}
    return {
        "options": {"activations": ["relu"], "seeds": 2},
        "parts": {
            "fully connected": {"step": [1, 2], "accuracy": connected},
            "residual": {"step": [1, 2], "accuracy": residual},
        },
    }


def with_last(name, value):
    found = result()
    for part in found["parts"].values():
        if name in part["accuracy"]:
            part["accuracy"][name][-1] = [value, value]
    return found


def test_holds():
    assert report.verdict(result()) == "holds"
    assert "0.9000 ± 0.0100" in report.table(result())


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("relu, after", 0.906, 0),
        ("relu, none", 0.89, 1),
        ("after the sum, per channel", 0.91, 2),
        ("before the sum, per activation", 0.91, 3),
    ],
)
def test_holds_partly(name, value, place):
    found = with_last(name, value)
    assert list(report.statements(found).values()) == [i != place for i in range(4)]
    assert report.verdict(found) == "holds partly"


def test_a_network_that_diverged_is_worst():
    found = with_last("relu, none", None)
    assert report.verdict(found) == "holds"
    assert "0.0000 ± 0.0000" in report.table(found)


def test_the_last_quarter_counts_not_the_last_record():
    found = result()
    rows = found["parts"]["fully connected"]["accuracy"]
    for name in rows:
        rows[name] = [[0.5, 0.5]] * 7 + [rows[name][-1]]
    rows["relu, after"][-2] = [0.6, 0.6]
    assert not report.statements(found)["relu: before is no worse than after"]


@pytest.mark.exhaustive
def test_every_part_has_networks_of_its_own():
    config = study.Placement()
    connected, residual = study._parts(config, (28, 28, 1))
    assert len(connected.runs) == 9
    assert connected.plan.steps == config.steps
    assert residual.plan.steps == config.residual_steps
    assert all(run.convolves for run in residual.runs)
