import numpy as np
import pytest

from experiments.measuring import mlperf
from experiments.networks import models


@pytest.mark.exhaustive
def test_parameters():
    assert mlperf.parameters(models.ResNet50()) == mlperf.PARAMETERS


def test_what_is_fitted_and_what_is_predicted():
    found = mlperf.compare()
    rows = found["runs"]
    # Runs whose five are equal, with nothing to synchronise.
    assert [row["cores"] for row in rows if row["fitted"]] == [32, 128]
    for row in rows:
        whole = row["computed_ms"] + row["gradient_ms"] + row["sync_ms"]
        np.testing.assert_allclose(row["predicted_ms"], whole, atol=0.11)
        limit = 0.001 if row["fitted"] else 0.2
        assert abs(row["error"]) <= limit
    # The published time has parts of the whole run that do not belong to a step.
    assert all(row["steady_ms"] < row["published_ms"] for row in rows)


def test_a_straight_line_misses_small_batches():
    errors = mlperf.straight_line()["errors"]
    assert max(abs(error) for error in errors[:5]) < 0.05
    assert min(errors[6:]) > 0.4


def test_fewer_images_take_more_cycles_each():
    each = [cycles / images for images, cycles in sorted(mlperf.CYCLES.items())]
    assert each == sorted(each, reverse=True)
