import json

import numpy as np

from experiments import output


def test_plain_numbers():
    values = np.array([[1.23456, np.nan], [np.inf, 0.00098764]], np.float32)
    assert output.plain(values) == [[1.235, None], [None, 0.0009876]]
    assert output.plain(values, digits=2)[0] == [1.2, None]
    assert output.plain(np.array([True, False])) == [True, False]
    assert output.plain(np.arange(2)) == [0, 1]
    assert output.plain(np.float64("-inf")) is None
    json.dumps(output.plain(values), allow_nan=False)


def test_spread_is_the_mean_and_half_the_range():
    assert output.spread(np.array([0.1, 0.4, 0.7])) == "0.4000 ± 0.3000"
