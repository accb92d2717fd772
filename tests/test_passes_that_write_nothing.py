"""A pass with `update_running_average=False` writes nothing, under any policy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import linen, sync_policies

X = (3 + np.random.default_rng(0).standard_normal((8, 3))).astype(np.float32)
POLICIES = [
    None,
    sync_policies.Exact(),
    sync_policies.Local(),
    sync_policies.Sampled(0.5),
    sync_policies.Periodic(2),
    sync_policies.Periodic(2, between="frozen"),
    sync_policies.FrozenAfter(3),
    sync_policies.Stale(),
]


def make_linen(policy):
    """A layer, and variables after one step."""
    layer = linen.BatchNorm(False, group_size=2, sync=policy)
    variables = layer.init(jax.random.key(0), X)
    variables = sync_policies.for_workers(variables, 4)
    mutable = ["batch_stats", "batch_sync"]
    _, new = layer.apply(variables, X, mutable=mutable)
    variables |= new
    if "said" in variables.get("batch_sync", {}):
        sync = sync_policies.exchange(variables["batch_sync"])
        variables |= {"batch_sync": sync}
    return layer, variables


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_linen(policy):
    layer, variables = make_linen(policy)
    expected, _ = layer.apply(variables, X, mutable=["batch_stats", "batch_sync"])
    # No collection is mutable, so writing would be an error.
    y = layer.apply(variables, X, update_running_average=False)
    np.testing.assert_array_equal(y, expected)
    mutable = ["batch_stats", "batch_sync"]
    y, new = layer.apply(variables, X, update_running_average=False, mutable=mutable)
    np.testing.assert_array_equal(y, expected)
    for name, tree in new.items():
        chex.assert_trees_all_equal(tree, variables[name])


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_nnx(policy):
    layer = jaxbn.nnx.BatchNorm(3, group_size=2, sync=policy, rngs=nnx.Rngs(0))
    nnx.update(layer, sync_policies.for_workers(nnx.state(layer), 4))
    layer(X)
    before = jax.tree.map(np.array, nnx.state(layer))
    layer(X, update_running_average=False)
    chex.assert_trees_all_equal(nnx.state(layer), before)
    layer(X)
    differs = jax.tree.map(lambda a, b: np.any(a != b), nnx.state(layer), before)
    assert any(map(np.any, jax.tree.leaves(differs)))


def test_the_backward_pass_sends_nothing():
    layer, variables = make_linen(sync_policies.Stale())
    said = sync_policies.said_of(variables["batch_sync"])

    def loss(said, **options):
        given = variables | {
            "batch_sync": sync_policies.with_said(variables["batch_sync"], said)
        }
        y, _ = layer.apply(given, X, mutable=["batch_stats", "batch_sync"], **options)
        return jnp.sum(y**3)

    messages = jax.grad(loss)(said)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(messages))
    messages = jax.grad(lambda said: loss(said, update_running_average=False))(said)
    chex.assert_trees_all_equal(messages, jax.tree.map(jnp.zeros_like, messages))
