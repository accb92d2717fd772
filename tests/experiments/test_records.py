import numpy as np

from experiments import records


def test_quarters_are_means_by_seed():
    values = np.arange(18.0).reshape(9, 2)  # Two of nine records are a quarter.
    first, last = records.quarters(values)
    np.testing.assert_array_equal(first, [1, 2])
    np.testing.assert_array_equal(last, [15, 16])


def test_of_few_records_one_is_a_quarter():
    first, last = records.quarters(np.array([[0.1], [0.2], [0.9]]))
    assert (first, last) == (0.1, 0.9)
