import matplotlib.pyplot as plt
import numpy as np

from experiments import curves


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
