from experiments.accelerators import (
    compare,
)
from experiments.programs import cases
from tests.experiments.accelerators.rows import made, network_rows


def test_ratios():
    rows = network_rows(none=40, flax=80, jaxbn=60, flax_stable=100)
    *_, jaxbn, stable = rows
    assert compare.over_flax(rows, jaxbn) == 0.75
    assert compare.normalisation_over_flax(rows, jaxbn) == 0.5
    assert compare.normalisation_over_flax(rows, stable) == 1.5
    dear = network_rows(none=90, flax=80, jaxbn=60, flax_stable=100)
    assert compare.normalisation_over_flax(dear, dear[2]) is None
    level = network_rows(none=1000, flax=1009, jaxbn=1020, flax_stable=1030)
    assert compare.normalisation_over_flax(level, level[2]) is None
    for other in ({"activation": "leaky_relu"}, {"parameters": "cast"}):
        alone = made(cases.Case(program="resnet50", **other))
        assert compare.over_flax([*rows, alone], alone) is None
    on_gpu = made(cases.Case(platform="gpu", target="h200"))
    assert compare.cost(on_gpu) == 15.0
    assert compare.cost(on_gpu | {"error": "no"}) is None
