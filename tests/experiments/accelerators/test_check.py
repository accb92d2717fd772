import pytest

from experiments.accelerators import (
    check,
)
from tests.experiments.accelerators.rows import made


def checked(**more):
    """Rows of a good check, with changes."""
    rows = {name: made(case) for name, case in check.CASES.items()}
    rows["layer"]["collectives"] |= {"forward": 1, "backward": 1, "gradients": 1}
    for name, changes in more.items():
        rows[name] |= changes
    return rows


def committed(jaxbn=2_000_000):
    flax = made(check.CASES["flax"])
    return [flax, made(check.CASES["jaxbn"], cycles=jaxbn)]


def test_check_passes():
    assert check.problems(checked(), committed()) == []
    slower = checked(jaxbn={"cycles": 2_050_000})  # 2.5 % are allowed.
    assert check.problems(slower, committed()) == []
    cast = [
        row | {"parameters": "cast", "cycles": cycles}
        for row, cycles in zip(committed(), (2, 1), strict=True)
    ]
    assert check.problems(slower, [*cast, *committed()]) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"jaxbn": {"cycles": 2_070_000}}, "1.035 of the cycles with Flax"),
        ({"jaxbn": {"barriers": 3}}, "3 optimization barriers"),
        ({"layer": {"barriers": 1}}, "1 optimization barriers"),
        ({"jaxbn": {"conditionals": 2}}, "2 conditionals"),
        ({"flax": {"error": "it crashed"}}, "it crashed"),
    ],
)
def test_check_says_what_is_wrong(rows, message):
    (found,) = check.problems(checked(**rows), committed())
    assert message in found


def test_check_counts_collectives():
    rows = checked()
    rows["layer"]["collectives"] |= {"backward": 2}
    (found,) = check.problems(rows, committed())
    assert "1 collectives forward and 2 backward" in found


def test_check_needs_committed_results():
    (found,) = check.problems(checked(), [])
    assert "has no small network" in found
