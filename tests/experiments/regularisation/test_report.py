"""The verdict on numbers made up."""

import pytest

from experiments.regularisation import report

ACCURACY = {  # By network, dropout, L2 and mini-batches.
    ("BN", 0.0, 0, "reshuffled"): 0.9,
    ("BN", 0.4, 0, "reshuffled"): 0.89,
    ("BN", 0.0, 0.001, "reshuffled"): 0.91,
    ("BN", 0.0, 0.005, "reshuffled"): 0.88,
    ("BN", 0.0, 0, "fixed"): 0.87,
    ("without BN", 0.0, 0, "reshuffled"): 0.85,
    ("without BN", 0.4, 0, "reshuffled"): 0.86,
    ("without BN", 0.0, 0.001, "reshuffled"): 0.85,
    ("without BN", 0.0, 0.005, "reshuffled"): 0.85,
    ("without BN", 0.0, 0, "fixed"): 0.85,
}


def result(changed=(), seeds=(0.01, -0.01)):
    rows = []
    for key, value in (ACCURACY | dict(changed)).items():
        network, dropout, l2, batches = key
        accuracy = [value + seed for seed in seeds]
        rows.append(
            {"network": network, "dropout": dropout, "l2": l2, "batches": batches,
             "accuracy": accuracy, "train_accuracy": [1.0], "loss": [0.1, None]}
        )  # fmt: skip
    about = {"dropout": [0.0, 0.4], "l2": 0.005, "steps": 1, "examples": 2, "seeds": 2}
    return {"options": about, "rows": rows}


def test_holds():
    assert report.verdict(result()) == "holds"
    assert "| +5.00 |" in report.table(result())


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        (("BN", 0.4, 0, "reshuffled"), 0.95, {1, 2}),
        (("BN", 0.0, 0.005, "reshuffled"), 0.92, {3}),
        (("BN", 0.0, 0, "fixed"), 0.91, {4, 5}),
        (("without BN", 0.0, 0, "fixed"), 0.80, {5}),
    ],
)
def test_holds_partly(key, value, place):
    found = result({key: value})
    failed = {i for i, each in enumerate(report.statements(found).values())
              if each.min() <= 0}  # fmt: skip
    assert failed == place
    assert report.verdict(found) == "holds partly"
    assert "| no | -" in report.table(found)


def test_every_seed_must_agree():
    found = result()
    row = report.row_of(found, "BN", dropout=0.0, l2=0.001, batches="reshuffled")
    row["accuracy"] = [0.8, 0.99]
    assert "| not in every seed |" in report.table(found)
    assert report.verdict(found) == "holds partly"


def test_a_row_that_is_missing():
    with pytest.raises(KeyError):
        report.row_of(result(), "BN", dropout=0.3)
