import jax
import jax.numpy as jnp
import optax
import pytest

from jaxbn import linen, sync_policies, training

P = jax.P
LAYER = linen.BatchNorm(axis_name="data", sync=sync_policies.Stale())


def make_state():
    variables = LAYER.init(jax.random.key(0), jnp.ones((2, 3)), True)
    return training.TrainState.create(LAYER.apply, variables, optax.adam(0.1))


def test_rows_of_a_whole_state():
    state = sync_policies.for_workers(make_state(), 8)
    shapes = jax.tree.map(jnp.shape, state.batch_sync)
    assert set(shapes["own"].values()) == set(shapes["said"].values()) == {(8, 3)}
    assert set(shapes["everyone"].values()) == set(shapes["heard"].values()) == {(3,)}
    assert state.params["scale"].shape == state.batch_stats["mean"].shape == (3,)
    again = sync_policies.for_workers(state, 8)
    assert jax.tree.map(jnp.shape, again.batch_sync) == shapes
    with pytest.raises(ValueError, match=r"one worker, or of 4, got 8 rows at .*own"):
        sync_policies.for_workers(state, 4)


def test_specs_of_a_whole_state():
    specs = sync_policies.partition_specs(make_state(), ("data", "model"))
    assert set(specs.batch_sync["own"].values()) == {P(("data", "model"))}
    assert set(specs.batch_sync["said"].values()) == {P(("data", "model"))}
    assert set(specs.batch_sync["heard"].values()) == {P()}
    others = jax.tree.leaves(specs.replace(batch_sync={}))
    assert set(others) == {P()}


def test_a_layer_of_that_name_elsewhere():
    tree = {"params": {"own": jnp.ones(3)}, "batch_stats": {"said": jnp.ones(3)}}
    assert sync_policies.partition_specs(tree, "d") == jax.tree.map(lambda _: P(), tree)
