import numpy as np
import pytest

from experiments import crossings

BASELINE = {"step": [10, 20, 30, 40], "accuracy": [[0.2, 0.4], [0.5, 0.7], [0.7, 0.7],
                                                   [0.6, 0.7]]}  # fmt: skip
FASTER = {"step": [5, 10, 15], "accuracy": [[0.5, 0.1], [0.8, 0.6], [0.9, 0.6]]}


def test_mean_and_best():
    np.testing.assert_allclose(crossings.mean(BASELINE), [0.3, 0.6, 0.7, 0.65])
    assert crossings.best(BASELINE) == pytest.approx(0.7)


def test_the_first_step_that_reaches_it():
    assert crossings.steps_to(BASELINE, 0.6) == 20
    assert crossings.steps_to(BASELINE, 0.8) is None
    assert crossings.steps_of_seeds(FASTER, 0.6) == [10, 10]
    assert crossings.steps_of_seeds(FASTER, 0.7) == [10, None]


def test_times_fewer():
    assert crossings.times_fewer(FASTER, BASELINE) == 3.0  # 30 steps over 10.
    assert crossings.times_fewer(BASELINE, FASTER) is None
    assert crossings.times_fewer(BASELINE, BASELINE) == 1.0
