import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import fully_connected
from experiments.practice.sensitivity import figure, grids, report

VALUES = [0.1, 1.0, 10.0]
NETWORKS = {"a": [[0.8, 0.9, 0.3], [0.9, 0.9, None]], "b": [[0.1, 0.86, 0.1]] * 2}


@pytest.mark.exhaustive
def test_networks_of_a_grid_are_those_one_by_one():
    model = fully_connected.FullyConnected((5,), "relu")
    run = grids.run("x", model, 4, 3, [0.1, 0.5], [1.0, 2.0], [1.0, 3.0])
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.random((6, 4), np.float32)),
        "label": jnp.asarray(rng.integers(10, size=6)),
    }
    state = jax.jit(run.step)(jax.jit(run.init)(jax.random.key(0)), batch)
    for place, (rate, hidden, last) in enumerate([(0.1, 1.0, 1.0), (0.5, 2.0, 3.0)]):
        single = grids.run("x", model, 4, 3, [rate], [hidden], [last])
        alone = jax.jit(single.step)(jax.jit(single.init)(jax.random.key(0)), batch)
        for found, expected in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True
        ):
            np.testing.assert_allclose(found[place], expected[0], rtol=1e-5, atol=1e-6)


def test_a_divergence_is_no_accuracy():
    records = {
        "accuracy": np.array([[[0.1, 0.1]], [[0.9, 0.1]]]),
        "finite": np.array([[[True, True]], [[True, False]]]),
    }
    assert grids.accuracies(records) == [[0.9, None]]


def test_where_networks_work():
    np.testing.assert_allclose(grids.mean(NETWORKS["a"]), [0.85, 0.9, 0.15])
    works = grids.works(NETWORKS)  # The bar is at .85.
    assert works["a"].tolist() == [True, True, False]
    assert works["b"].tolist() == [False, True, False]
    assert grids.learns(NETWORKS["b"]).tolist() == [False, True, False]
    assert grids.decades(VALUES, works["a"]) == 2.0


def test_table_and_figure_show_divergence():
    result = {"values": VALUES, "accuracy": {"relu": NETWORKS}}
    page = grids.table(result, {"a": "A", "b": "B"}, "Words")
    assert "| relu | A | 0.850 | 0.900 | diverged 1 of 2 |" in page
    styles = {"a": ("A", "tab:blue", "-"), "b": ("B", "tab:orange", "--")}
    axes = grids.draw(result, styles, "x").axes[0]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert crosses[0].get_xdata().tolist() == [10.0]


def make_result(**networks):
    accuracy = {"relu": {name: [values] for name, values in networks.items()}}
    return {"config": {"steps": 5, "seeds": 1}, "values": VALUES, "accuracy": accuracy}


def verdicts(page):
    lines = page.split("\n\n")[1].split("\n")[2:]
    return [line.split("**")[-2] for line in lines]


@pytest.mark.parametrize(
    ("with_bn", "without_bn", "expected"),
    [
        ((0.8, 0.9, 0.9), (0.8, 0.85, None), ["holds", "holds", "holds"]),
        ((0.9, 0.8, 0.1), (0.9, 0.9, None), ["does not hold here"] * 2 + ["holds"]),
        ((0.1, 0.2, 0.2), (0.9, 0.9, 0.9), ["does not hold here"] * 3),
        ((0.1, 0.9, 0.1), (0.1, 0.1, 0.2), ["holds"] * 3),
    ],
)
def test_verdicts_on_learning_rates(with_bn, without_bn, expected):
    result = make_result(with_bn=with_bn, without_bn=without_bn)
    assert verdicts(report.learning_rate(result)) == expected
    assert figure.learning_rate(result).axes


def test_ranges():
    result = make_result(with_bn=(0.8, 0.9, 0.9), without_bn=(0.8, 0.85, None))
    page = report.learning_rate(result)
    assert "| relu | with BN | 0.900 | 1 | 1 to 10 | 2 | never |" in page
    assert "| relu | without BN | 0.850 | 1 | 1 to 1 | 1 | 10 |" in page


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        (((0.9, 0.9, 0.1), (0.6, 0.9, 0.9), (0.1, 0.9, None)), ["holds", "holds"]),
        (
            ((0.1, 0.9, 0.1), (0.1, 0.9, 0.9), (0.1, 0.9, None)),
            ["holds partly", "does not hold here"],
        ),
        (((0.1, 0.9, 0.1),) * 3, ["does not hold here"] * 2),
    ],
)
def test_verdicts_on_initial_weights(accuracies, expected):
    networks = dict(zip(report.INITIALISATION, accuracies, strict=True))
    result = make_result(**networks)
    assert verdicts(report.initialisation(result)) == expected
    assert figure.initialisation(result).axes
