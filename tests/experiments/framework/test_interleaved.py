import pytest

from experiments.framework import interleaved


def test_ratios():
    ratio = interleaved.ratio([2.0, 4.0, 12.0], [1.0, 1.0, 2.0])
    assert ratio == (4.0, 3.0, 5.0)
    assert interleaved.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_programs_take_turns():
    calls = []
    programs = {name: lambda name=name: calls.append(name) for name in "ab"}
    taken = interleaved.seconds(programs, rounds=3, at_least=0.0)
    assert {name: len(values) for name, values in taken.items()} == {"a": 3, "b": 3}
    rounds = "".join(calls).removeprefix("aabb")
    rounds = [rounds[i : i + 2] for i in range(0, len(rounds), 2)]
    assert len(rounds) == 4
    assert set(rounds) == {"ab", "ba"}
