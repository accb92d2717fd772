import chex
import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from jaxbn import stats_tree


def double(state):
    return {**state, "mean": state["mean"] + 1, "var": 2 * state["var"]}


PAIR = {"mean": np.zeros(3), "var": np.ones(3)}
DOUBLED = {"mean": np.ones(3), "var": np.full(3, 2.0)}
TREES = {
    "dict": lambda pair: {"block": {"bn": pair, "step": 1}},
    "frozen": lambda pair: flax.core.freeze({"block": {"bn": pair}}),
    "list": lambda pair: [pair, 3, {"bn": pair}],
    "tuple": lambda pair: (pair, (pair, 0.5)),
    "BatchStats": lambda pair: {"bn": jaxbn.BatchStats(**pair)},
    "nested": lambda pair: {**pair, "inner": dict(pair)},
    "boxed": lambda pair: {k: nn.Partitioned(v, ("c",)) for k, v in pair.items()},
    "mean of something else": lambda pair: {"mean": {"kernel": 1.0}, "bn": pair},
}


@pytest.mark.parametrize("name", TREES)
def test_map_keeps_containers(name):
    tree, expected = TREES[name](PAIR), TREES[name](DOUBLED)
    mapped = stats_tree.map_states(double, tree)
    assert jax.tree.structure(mapped) == jax.tree.structure(tree)
    chex.assert_trees_all_equal(mapped, expected)


def test_nnx_state():
    layer = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    state = nnx.state(layer, nnx.BatchStat)
    mapped = stats_tree.map_states(double, state)
    assert isinstance(mapped, type(state))
    nnx.update(layer, mapped)
    np.testing.assert_array_equal(layer.mean[...], np.ones(3))
    np.testing.assert_array_equal(layer.var[...], np.full(3, 2.0))


def test_paths():
    tree = {"a": [PAIR, {"bn": PAIR}], "mean": jnp.zeros(2), "b": {"mean": 1.0}}
    assert list(stats_tree.pairs(tree)) == [("a", "0"), ("a", "1", "bn")]
    (pair,) = stats_tree.pairs(jaxbn.BatchStats(**PAIR)).values()
    chex.assert_trees_all_equal(pair, jaxbn.BatchStats(**PAIR))
