import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import fully_connected, grids

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
