"""The messages of all layers of a tree, and the place of a state's rows on devices."""

import chex
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn.nnx
from jaxbn import linen, sync, training

P = jax.P
RNG = np.random.default_rng(0)


def make_layer(shape, workers, received=0.0):
    shapes = {"a": (workers, *shape), "b": (workers, *shape, 2)}
    sent = {n: jnp.asarray(RNG.standard_normal(s)) for n, s in shapes.items()}
    sums = {n: jnp.full(s[1:], received) for n, s in shapes.items()}
    return {"sent": sent, "received": sums, "own": jnp.ones(3), "step": jnp.array(3)}


STATES = {
    "block": {"bn": make_layer((3,), 4), "other": {"step": jnp.array(1)}},
    "wide": make_layer((2, 5), 4),
}


def assert_received(new, sent):
    chex.assert_trees_all_close(
        new["received"], jax.tree.map(lambda part: part.sum(0), sent), rtol=1e-6
    )


def test_all_workers_receive_the_sum():
    made = sync.exchange(STATES)
    chex.assert_trees_all_equal_shapes_and_dtypes(made, STATES)
    for old, new in (
        (STATES["block"]["bn"], made["block"]["bn"]),
        (STATES["wide"], made["wide"]),
    ):
        assert_received(new, old["sent"])
        for name in ("sent", "own", "step"):
            chex.assert_trees_all_equal(new[name], old[name])
    assert made["block"]["other"] == STATES["block"]["other"]


def test_cotangents_are_sent_as_well():
    messages = sync.messages_of(STATES)
    assert set(messages) == {"block/bn/a", "block/bn/b", "wide/a", "wide/b"}
    made = sync.exchange(STATES, messages)
    twice = jax.tree.map(lambda part: 2 * part, STATES["wide"]["sent"])
    assert_received(made["wide"], twice)


def test_over_a_mapped_axis():
    layer = make_layer((3,), 8)
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), layer)
    copies["sent"] = jax.tree.map(lambda leaf: leaf[:, None], layer["sent"])
    made = jax.vmap(lambda tree: sync.exchange(tree, axis_name="d"), axis_name="d")(
        {"bn": copies}
    )
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf.sum(0)] * 8), layer["sent"])
    chex.assert_trees_all_close(made["bn"]["received"], copies, rtol=1e-5)


def test_one_sum_for_all_layers():
    mapped = jax.shard_map(
        lambda tree: sync.exchange(tree, axis_name="d"),
        mesh=jax.make_mesh((2,), ("d",)),
        in_specs=P(),
        out_specs=P(),
        check_vma=False,
    )
    assert str(jax.make_jaxpr(mapped)(STATES)).count("psum") == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_layer_receives_nothing_if_a_sum_is_not_finite(value):
    spoiled = {**STATES, "wide": make_layer((2, 5), 4, received=7.0)}
    sent = spoiled["wide"]["sent"]
    sent["a"] = sent["a"].at[1, 0, 0].set(value)
    made = sync.exchange(spoiled)
    chex.assert_trees_all_equal(made["wide"]["received"], spoiled["wide"]["received"])
    assert not any(np.any(leaf) for leaf in made["wide"]["sent"].values())
    assert_received(made["block"]["bn"], STATES["block"]["bn"]["sent"])


def test_messages_are_put_back():
    zeros = jax.tree.map(jnp.zeros_like, sync.messages_of(STATES))
    made = sync.with_messages(flax.core.freeze(STATES), zeros)
    assert isinstance(made, flax.core.FrozenDict)
    chex.assert_trees_all_equal(sync.messages_of(made), zeros)
    received = flax.core.unfreeze(made["wide"]["received"])
    chex.assert_trees_all_equal(received, STATES["wide"]["received"])


def test_a_tree_without_states():
    assert sync.messages_of({}) == {}
    assert sync.exchange({}) == {}


def test_only_sums_of_backward_passes_are_scaled():
    ones = jnp.ones(2)
    tree = {"own": {"gradient": ones, "count": ones}, "sent": {"product": ones}}
    made = sync.scale_messages({"bn": tree}, 8.0)["bn"]
    assert made["own"]["gradient"][0] == made["sent"]["product"][0] == 8
    assert made["own"]["count"][0] == 1


def test_every_kind_of_tree_has_the_same_messages():
    policy = sync.Stale()
    stats = jaxbn.init_batch_stats(3, sync=policy)
    variables = linen.BatchNorm(group_size=2, sync=policy).init(
        jax.random.key(0), jnp.ones((2, 3)), True
    )
    model = jaxbn.nnx.BatchNorm(3, group_size=2, sync=policy, rngs=nnx.Rngs(0))
    for tree in (stats, variables, nnx.state(model)):
        names = {key.rpartition("/")[2] for key in sync.messages_of(tree)}
        assert names == {"count", "offset", "square", "gradient", "product"}
        ones = jax.tree.map(jnp.ones_like, sync.messages_of(tree))
        new = sync.exchange(sync.with_messages(sync.for_workers(tree, 1), ones))
        chex.assert_trees_all_equal_structs(new, tree)
        # Five entries of three channels are sent, and as many are received.
        total = sum(map(jnp.sum, jax.tree.leaves(new)))
        assert total == 30 + sum(map(jnp.sum, jax.tree.leaves(tree)))


@pytest.fixture(scope="module")
def state():
    layer = linen.BatchNorm(axis_name="data", sync=sync.Stale())
    variables = layer.init(jax.random.key(0), jnp.ones((2, 3)), True)
    return training.TrainState.create(layer.apply, variables, optax.adam(0.1))


def test_rows_of_a_whole_state(state):
    rows = sync.for_workers(state, 8)
    shapes = jax.tree.map(jnp.shape, rows.batch_sync)
    assert set(shapes["own"].values()) == set(shapes["sent"].values()) == {(8, 3)}
    assert set(shapes["everyone"].values()) == {(3,)}
    assert set(shapes["received"].values()) == {(3,)}
    assert rows.params["scale"].shape == rows.batch_stats["mean"].shape == (3,)
    again = sync.for_workers(rows, 8)
    assert jax.tree.map(jnp.shape, again.batch_sync) == shapes
    with pytest.raises(ValueError, match=r"one worker, or of 4, got 8 rows at .*own"):
        sync.for_workers(rows, 4)


def test_specs_of_a_whole_state(state):
    specs = sync.partition_specs(state, ("data", "model"))
    for name in ("own", "sent"):
        assert set(specs.batch_sync[name].values()) == {P(("data", "model"))}
    assert set(specs.batch_sync["received"].values()) == {P()}
    assert set(jax.tree.leaves(specs.replace(batch_sync={}))) == {P()}


def test_entries_of_that_name_elsewhere_are_shared():
    tree = {"params": {"own": jnp.ones(3)}, "batch_stats": {"sent": jnp.ones(3)}}
    assert sync.partition_specs(tree, "d") == jax.tree.map(lambda _: P(), tree)
