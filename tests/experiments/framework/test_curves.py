import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.framework import curves

BASELINE = {"step": [10, 20, 30, 40], "accuracy": [[0.2, 0.4], [0.5, 0.7], [0.7, 0.7],
                                                   [0.6, 0.7]]}  # fmt: skip
FASTER = {"step": [5, 10, 15], "accuracy": [[0.5, 0.1], [0.8, 0.6], [0.9, 0.6]]}


def test_mean_and_range_of_the_seeds():
    axes = plt.figure().subplots()
    seeds = [[1.0, 3.0], [2.0, 6.0], [None, 1.0]]
    curves.draw(axes, [10, 20, 30], seeds, "--", color="tab:red", label="a")
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_ydata(), [2, 4, np.nan])
    assert (line.get_label(), line.get_linestyle()) == ("a", "--")
    (band,) = axes.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices}
    assert {(10, 1), (10, 3), (20, 2), (20, 6)} <= corners


def test_quarters_are_means_by_seed():
    values = np.arange(18.0).reshape(9, 2)  # Two of nine records are a quarter.
    first, last = curves.quarters(values)
    np.testing.assert_array_equal(first, [1, 2])
    np.testing.assert_array_equal(last, [15, 16])
    assert curves.quarters(np.array([[0.1], [0.2], [0.9]])) == (0.1, 0.9)


def test_mean_and_best():
    np.testing.assert_allclose(curves.mean(BASELINE), [0.3, 0.6, 0.7, 0.65])
    assert curves.best(BASELINE) == pytest.approx(0.7)


def test_the_first_step_that_reaches_it():
    assert curves.steps_to(BASELINE, 0.6) == 20
    assert curves.steps_to(BASELINE, 0.8) is None
    assert curves.steps_of_seeds(FASTER, 0.6) == [10, 10]
    assert curves.steps_of_seeds(FASTER, 0.7) == [10, None]


def test_times_fewer():
    assert curves.times_fewer(FASTER, BASELINE) == 3.0  # 30 steps over 10.
    assert curves.times_fewer(BASELINE, FASTER) is None
    assert curves.times_fewer(BASELINE, BASELINE) == 1.0
