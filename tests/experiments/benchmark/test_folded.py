"""Tests the measurements of a folded network and their table."""

import functools

import pytest

from experiments.benchmark import folded, report
from experiments.networks import models


@pytest.mark.exhaustive
def test_a_small_network():
    small = functools.partial(models.SmallNetwork, blocks=((16, 2), (16, 1)))
    rows = folded.network(small, rounds=2, images=2, size=16)
    assert set(rows) == {"flax.linen", "jaxbn", "folded"}
    assert rows["jaxbn"]["arrays"] == rows["flax.linen"]["arrays"]
    assert rows["folded"]["arrays"] < rows["jaxbn"]["arrays"]
    assert rows["folded"]["into_others"] == rows["folded"]["layers"] == 9
    assert rows["folded"]["error"] < 1e-5  # Float32 rounding of ten layers.
    assert rows["folded"]["over_folded"] == (1, 1, 1)
    text = report._folded_table({"folded": {"Small": rows}})
    assert "(9 of 9 layers folded into others)" in text
    assert "| Small | jaxbn |" in text
