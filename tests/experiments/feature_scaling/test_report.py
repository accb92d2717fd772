"""The verdict on numbers made up."""

import pytest

from experiments.feature_scaling import report

STEPS = {"none": 1_000_000, "min-max": 1000, "z-score": 100, "BN first": 101}


def result(**changed):
    rows = [
        {"table": table, "scaling": scaling, "condition": 2.0 * steps, "steps": steps}
        for table in ("iris", "wine")
        for scaling, steps in STEPS.items()
    ]
    for row in rows:
        if row["table"] == "wine" and row["scaling"] in changed:
            row["steps"] = changed[row["scaling"]]
    return {
        "options": {"tolerance": 0.01},
        "rows": rows,
        "smallest_variance": {"iris": 0.1, "wine": 1e-5},
    }


def test_holds():
    assert report.slope(result()) == pytest.approx(1)
    assert report.verdict(result()) == "holds"
    text = report.table(result())
    assert "power of 1.00" in text
    assert "1,000,000" in text
    assert "until 99%" in text


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"min-max": 2_000_000}, 0),
        ({"z-score": 1001, "BN first": 1001}, 1),
        ({"BN first": 120}, 2),
    ],
)
def test_holds_partly(changed, place):
    found = list(report.statements(result(**changed)).values())
    assert found == [i != place for i in range(4)]
    assert report.verdict(result(**changed)) == "holds partly"


def test_steps_that_do_not_grow():
    flat = result()
    for row in flat["rows"]:
        row["steps"] = 7
    assert not list(report.statements(flat).values())[3]
