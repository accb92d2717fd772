import json
import pathlib

import pytest

from experiments.library.accuracy import report
from experiments.library.accuracy import study as accuracy


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize(
    "ratio", [pytest.param(1e2, marks=pytest.mark.exhaustive), 1e4]
)
def test_gradient_of_the_scale_is_that_of_float64(ratio, mean):
    errors = accuracy.errors(4096, ratio, mean, "float32")["errors"]
    # The rounding of a float32 sum; the raw sum x * dy gave 6e-2 at 1e4.
    assert errors["jaxbn"]["dscale"] < 1e-5
    assert errors["flax fast"]["dscale"] > 10 * errors["jaxbn"]["dscale"]
    # That of x_hat, which no float32 layer avoids: the mean rounds to 5e-4 of std.
    assert errors["jaxbn"]["y"] < 1e-7 * ratio + 1e-6


def test_committed_errors_are_at_most_those_of_pytorch():
    results = pathlib.Path(accuracy.__file__).parent / "results"
    for row in json.loads((results / "accuracy.json").read_text())["rows"]:
        errors = row["errors"]
        for quantity in report.QUANTITIES:
            assert errors["jaxbn"][quantity] <= 2 * errors["torch"][quantity], row
