import chex
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn import sync_policies

RNG = np.random.default_rng(0)


def layer(shape, workers, heard=0.0):
    said = {"a": (workers, *shape), "b": (workers, *shape, 2)}
    made = {
        "said": {n: jnp.asarray(RNG.standard_normal(s)) for n, s in said.items()},
        "heard": {n: jnp.full(s[1:], heard) for n, s in said.items()},
    }
    return {**made, "own": jnp.ones(3), "step": jnp.array(3)}


STATES = {"block": {"bn": layer((3,), 4), "other": {"step": jnp.array(1)}},
          "wide": layer((2, 5), 4)}  # fmt: skip


def expected(said):
    return jax.tree.map(lambda part: part.sum(0), said)


def test_all_hear_the_sum():
    made = sync_policies.exchange(STATES)
    for old, new in ((STATES["block"]["bn"], made["block"]["bn"]),
                     (STATES["wide"], made["wide"])):  # fmt: skip
        chex.assert_trees_all_close(new["heard"], expected(old["said"]), rtol=1e-6)
        chex.assert_trees_all_equal(new["said"], old["said"])
        chex.assert_trees_all_equal(new["own"], old["own"])
        assert new["step"] == 3
    assert made["block"]["other"] == STATES["block"]["other"]
    chex.assert_trees_all_equal_shapes_and_dtypes(made, STATES)


def test_cotangents_are_said_as_well():
    said = sync_policies.said_of(STATES)
    assert set(said) == {"block/bn", "wide"}
    made = sync_policies.exchange(STATES, said)
    chex.assert_trees_all_close(
        made["wide"]["heard"], expected(jax.tree.map(lambda x: 2 * x, said["wide"]))
    )


def test_over_a_mapped_axis():
    states = {"bn": layer((3,), 8)}
    apart = jax.tree.map(lambda leaf: leaf[:, None], states["bn"]["said"])
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), states)
    copies["bn"]["said"] = apart
    exchange = lambda tree: sync_policies.exchange(tree, axis_name="d")  # noqa: E731
    made = jax.vmap(exchange, axis_name="d")(copies)
    for name, total in expected(states["bn"]["said"]).items():
        for worker in range(8):
            np.testing.assert_allclose(
                made["bn"]["heard"][name][worker], total, rtol=1e-5
            )


def test_one_sum_for_all_layers():
    exchange = lambda tree: sync_policies.exchange(tree, axis_name="d")  # noqa: E731
    mesh = jax.make_mesh((2,), ("d",))
    mapped = jax.shard_map(
        exchange, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False
    )
    assert str(jax.make_jaxpr(mapped)(STATES)).count("psum") == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_layer_with_something_not_finite_hears_nothing(value):
    spoiled = {**STATES, "wide": layer((2, 5), 4, heard=7.0)}
    spoiled["wide"]["said"]["a"] = spoiled["wide"]["said"]["a"].at[1, 0, 0].set(value)
    made = sync_policies.exchange(spoiled)
    chex.assert_trees_all_equal(made["wide"]["heard"], spoiled["wide"]["heard"])
    assert not any(np.any(leaf) for leaf in made["wide"]["said"].values())
    chex.assert_trees_all_close(
        made["block"]["bn"]["heard"], expected(STATES["block"]["bn"]["said"])
    )


def test_put_back():
    said = jax.tree.map(jnp.zeros_like, sync_policies.said_of(STATES))
    made = sync_policies.with_said(flax.core.freeze(STATES), said)
    assert isinstance(made, flax.core.FrozenDict)
    chex.assert_trees_all_equal(sync_policies.said_of(made), said)
    heard = flax.core.unfreeze(made["wide"]["heard"])
    chex.assert_trees_all_equal(heard, STATES["wide"]["heard"])


def test_no_states():
    assert sync_policies.said_of({}) == {}
    assert sync_policies.exchange({}) == {}


def test_scaled():
    states = {"bn": {"own": {"gradient": jnp.ones(2), "count": jnp.ones(2)},
                     "said": {"product": jnp.ones(1)}}}  # fmt: skip
    made = sync_policies.scaled_messages(states, 8.0)
    assert made["bn"]["own"]["gradient"][0] == made["bn"]["said"]["product"][0] == 8
    assert made["bn"]["own"]["count"][0] == 1
