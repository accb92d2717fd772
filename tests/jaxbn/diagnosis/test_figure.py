"""Tests the figure: each layer's range, its colour and the limits of the advice."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from jaxbn import optional
from jaxbn.diagnosis import figure, measure
from jaxbn.diagnosis.report import Diagnosis


def row(path, distances, ratios, call=1):
    values = {name: 0 for name in measure.LayerDiagnosis._fields}
    values |= {"path": path, "call": call, "advice": ()}
    distances, ratios = np.array(distances), np.array(ratios)
    values |= {"mean_distances": distances, "variance_ratios": ratios}
    seen = np.isfinite(ratios)
    values["mean_distance"] = np.max(distances, where=seen, initial=0)
    values["variance_ratio"] = np.max(
        np.maximum(ratios, 1 / ratios), where=seen, initial=1
    )
    return measure.LayerDiagnosis(**values)


ROWS = (
    row("right", [0.0, 0.1, 0.2], [0.9, 1.0, 1.1]),
    row("mean", [0.1, 0.2, 3.0], [1.0, 1.0, 1.0]),
    row("narrow", [0.0, 0.0, 0.1], [0.3, 1.0, 1.1]),
    row("narrow", [0.1, np.nan, 0.1], [1.0, np.nan, 9.0], call=2),
)


def colors(axes):
    """Returns the colour of each layer's range."""
    lines = [line for line in axes.get_lines() if line.get_marker() == "|"]
    return ["red" if line.get_color() == "tab:red" else "blue" for line in lines]


def dashed(axes):
    """Returns the positions of the limits."""
    lines = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    return [line.get_xdata()[0] for line in lines]


def test_layers_beyond_a_limit_are_red():
    drawn = Diagnosis(ROWS).figure()
    left, right = drawn.axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["right", "mean", "narrow", "narrow (call 2)"]
    assert left.yaxis_inverted()  # The first layer at the top.
    assert colors(left) == ["blue", "red", "blue", "blue"]
    assert colors(right) == ["blue", "blue", "red", "red"]
    assert "off in 3 of 4 layers" in drawn.get_suptitle()
    assert right.get_xscale() == "log"


def test_limits_are_those_of_the_advice():
    left, right = figure.draw(ROWS).axes
    assert dashed(left) == [measure.MEAN_LIMIT]
    assert dashed(right) == pytest.approx([1 / 1.5, measure.VARIANCE_LIMIT])
    for axes in (left, right):
        low, high = axes.get_xlim()
        assert low < min(dashed(axes))
        assert max(dashed(axes)) < high


def test_ranges_and_medians_are_those_of_the_channels():
    left, _ = figure.draw(ROWS[1:2]).axes
    span, median, _ = left.get_lines()
    np.testing.assert_array_equal(span.get_xdata(), [0.1, 3.0])
    np.testing.assert_array_equal(median.get_xdata(), [0.2])


def test_a_file_is_made_and_no_global_figure(tmp_path):
    nothing = row("empty", [np.nan], [np.nan])
    before = plt.get_fignums()
    figure.draw((*ROWS, nothing)).savefig(tmp_path / "diagnosis.png")
    assert (tmp_path / "diagnosis.png").stat().st_size > 1000
    assert plt.get_fignums() == before


def test_without_matplotlib(monkeypatch):
    def missing(name, purpose):
        raise ModuleNotFoundError(f"{purpose} needs {name}")

    monkeypatch.setattr(optional, "imported", missing)
    with pytest.raises(ModuleNotFoundError, match="figure of the diagnosis needs matp"):
        Diagnosis(ROWS).figure()
