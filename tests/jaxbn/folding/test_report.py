"""Tests the text of the report on folded layers."""

from jaxbn.folding.report import FoldedLayer, Report


def test_one_line_per_layer():
    rows = (
        FoldedLayer("block/bn", "before", "block/conv", ""),
        FoldedLayer("norm", "after", "head", ""),
        FoldedLayer("", "affine", None, "nothing stands before it"),
        FoldedLayer("last", "left", None, "it is Flax's"),
    )
    assert str(Report(rows)).splitlines() == [
        "block/bn     folded into block/conv",
        "norm         folded into head, which follows",
        "(the model)  a scale and a bias: nothing stands before it",
        "last         left as it is: it is Flax's",
    ]
    assert str(Report(())) == ""
