"""Tests the checks of options that the studies share."""

import dataclasses

import pytest

from experiments.framework import options


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 100
    sizes: tuple[int, ...] = (2, 3)
    rate: float = 0.1


def test_bounds():
    options.check_at_least(Config(), steps=100, sizes=2)
    with pytest.raises(ValueError, match="`steps` must be at least 101, got 100"):
        options.check_at_least(Config(), steps=101)
    for sizes in ((2, 1), ()):
        with pytest.raises(ValueError, match="`sizes` must be at least 2, got"):
            options.check_at_least(Config(sizes=sizes), sizes=2)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_positive(rate):
    options.check_positive(Config(), "rate")
    with pytest.raises(ValueError, match="`rate` must be positive and finite"):
        options.check_positive(Config(rate=rate), "rate")


def test_among():
    options.check_among(Config(), (1, 2, 3), "sizes")
    options.check_among(Config(), (100,), "steps")
    for sizes in ((2, 4), ()):
        with pytest.raises(ValueError, match=r"`sizes` must be among \(2, 3\), got \("):
            options.check_among(Config(sizes=sizes), (2, 3), "sizes")
    with pytest.raises(ValueError, match=r"`steps` must be among \(1,\), got 100"):
        options.check_among(Config(), (1,), "steps")


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_weights(rate):
    options.check_weights(Config(), "rate")
    with pytest.raises(ValueError, match=r"`rate` must lie in \[0, 1\], got"):
        options.check_weights(Config(rate=rate), "rate")
