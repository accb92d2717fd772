"""The protocol of policies in the functional form and in the layers of both APIs."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import linen, sync
from tests.train_by_policy import EveryOther

RNG = np.random.default_rng(0)
BATCHES = [(RNG.standard_normal((8, 3)) + n).astype(np.float32) for n in range(4)]
X = BATCHES[3]


def run(policy, batches, stats=None, **options):
    """Returns y of every step, and the last running statistics."""
    stats = jaxbn.init_batch_stats(3, sync=policy) if stats is None else stats
    outputs = []
    for x in batches:
        options = {"group_size": 2, "sync": policy, **options}
        y, stats = jaxbn.batch_norm_train(x, None, None, stats, **options)
        outputs.append(y)
    return outputs, stats


def exact(batches):
    return run(None, batches, group_size=None)


def test_a_policy_of_a_user():
    outputs, stats = run(EveryOther(), BATCHES)
    for step, y in enumerate(outputs):
        right, _ = run(None, [BATCHES[step]], group_size=2 if step % 2 else None)
        np.testing.assert_allclose(y, right[0], rtol=1e-5, atol=1e-5)
    _, right = exact(BATCHES[::2])
    assert stats.sync == {"step": 4}
    chex.assert_trees_all_close(stats._replace(sync={}), right, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Doubling:
    """Computes the variance of values that are twice as large."""

    def init(self, shape, dtype):
        return {"calls": jnp.zeros((), jnp.int32)}

    def normalize(self, call, state):
        y, _ = call.by(lambda own: (own._replace(var=4 * own.var), None))
        return sync.Normalized(y, call.no_moments(), {"calls": state["calls"] + 1.0})


def test_moments_of_a_user():
    (y,), stats = run(Doubling(), [X], epsilon=0.0)
    (alone,), _ = run(None, [X], epsilon=0.0)
    np.testing.assert_allclose(y, alone / 2, rtol=1e-4, atol=1e-5)
    assert stats.sync == {"calls": 1}
    assert stats.sync["calls"].dtype == jnp.int32  # It had this dtype before.
    new = jaxbn.init_batch_stats(3)
    chex.assert_trees_all_equal(stats._replace(sync={}), new)


@pytest.mark.exhaustive
def test_frozen_after():
    outputs, stats = run(sync.FrozenAfter(2), BATCHES)
    (_, y), right = exact(BATCHES[:2])
    np.testing.assert_allclose(outputs[1], y, rtol=1e-5, atol=1e-6)
    assert stats.sync == {"step": 2}
    chex.assert_trees_all_close(stats._replace(sync={}), right, rtol=1e-6)
    y = jaxbn.batch_norm_inference(X, None, None, stats)
    np.testing.assert_allclose(outputs[3], y, rtol=1e-6)
    outputs, stats = run(sync.FrozenAfter(0), BATCHES)
    chex.assert_trees_all_equal(stats._replace(sync={}), jaxbn.init_batch_stats(3))
    np.testing.assert_allclose(outputs[0], BATCHES[0] / np.sqrt(1 + 1e-5), rtol=1e-6)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [(-1, ValueError, "at least 0"), (True, TypeError, "an int"), (1.5, TypeError, "")],
)
def test_errors_of_frozen_after(step, error, message):
    with pytest.raises(error, match=f"`step` must be {message}"):
        sync.FrozenAfter(step)


STATS = jaxbn.init_batch_stats(3)


@pytest.mark.parametrize(
    ("policy", "stats", "options", "error", "message"),
    [
        ("stale", STATS, {}, TypeError, "`sync` must be a policy such as"),
        (sync.Stale, STATS, {}, TypeError, "`sync` must be a policy such as"),
        (sync.Stale(), STATS, {}, ValueError, "`init_batch_stats(shape, sync=...)`"),
        (
            EveryOther(),
            STATS._replace(sync={"a": 1}),
            {},
            ValueError,
            "must be one that its `init` returns",
        ),
        (
            sync.Stale(),
            jaxbn.init_batch_stats(3, sync=sync.Stale()),
            {},
            ValueError,
            "a row for each of the 4 workers here, got 1; make it with "
            "`jaxbn.sync.for_workers`",
        ),
        (
            Doubling(),
            None,
            {"group_size": None},
            ValueError,
            "`sync` needs several workers, got neither an `axis_name`",
        ),
    ],
)
def test_errors(policy, stats, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        run(policy, [X], stats, **options)


def test_groups_of_devices_as_well():
    def one(x):
        return run(EveryOther(), [x], axis_name="d", group_size=2)

    with pytest.raises(ValueError, match="`sync` decides which devices share"):
        jax.vmap(one, axis_name="d")(X.reshape(4, 2, 3))


def test_a_policy_must_be_hashable():
    @dataclasses.dataclass
    class Changing:
        init = Doubling.init
        normalize = Doubling.normalize

    with pytest.raises(TypeError, match="`sync` must be hashable"):
        jaxbn.init_batch_stats(3, sync=Changing())


POLICIES = [None, EveryOther(), sync.FrozenAfter(3), sync.Stale()]
MUTABLE = ["batch_stats", "batch_sync"]


def make_linen(policy):
    """Returns a layer, and its variables after one step."""
    layer = linen.BatchNorm(False, group_size=2, sync=policy)
    variables = sync.for_workers(layer.init(jax.random.key(0), X), 4)
    _, new = layer.apply(variables, X, mutable=MUTABLE)
    return layer, variables | sync.exchange(new)


@pytest.mark.first_case
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_linen_without_updates_writes_nothing(policy):
    layer, variables = make_linen(policy)
    right, _ = layer.apply(variables, X, mutable=MUTABLE)
    # No collection is mutable, so writing would be an error.
    y = layer.apply(variables, X, update_running_average=False)
    np.testing.assert_array_equal(y, right)
    y, new = layer.apply(variables, X, update_running_average=False, mutable=MUTABLE)
    np.testing.assert_array_equal(y, right)
    for name, tree in new.items():
        chex.assert_trees_all_equal(tree, variables[name])


@pytest.mark.first_case
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_nnx_without_updates_writes_nothing(policy):
    layer = make_nnx(group_size=2, sync=policy)
    nnx.update(layer, sync.for_workers(nnx.state(layer), 4))
    layer(X)
    before = jax.tree.map(np.array, nnx.state(layer))
    layer(X, update_running_average=False)
    chex.assert_trees_all_equal(nnx.state(layer), before)
    layer(X)
    differs = jax.tree.map(lambda a, b: np.any(a != b), nnx.state(layer), before)
    assert any(jax.tree.leaves(differs))


@pytest.mark.exhaustive
def test_a_backward_pass_without_updates_sends_nothing():
    layer, variables = make_linen(sync.Stale())

    def loss(messages, **options):
        given = sync.with_messages(variables, messages)
        y, _ = layer.apply(given, X, mutable=MUTABLE, **options)
        return jnp.sum(y**3)

    messages = sync.messages_of(variables)
    assert any(map(np.any, jax.grad(loss)(messages).values()))
    sent = jax.grad(lambda m: loss(m, update_running_average=False))(messages)
    chex.assert_trees_all_equal(sent, jax.tree.map(jnp.zeros_like, sent))


def make_nnx(**options):
    return jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0), **options)


def states(model):
    """Returns the variables of policies."""
    return nnx.state(model, (jaxbn.nnx.BatchSync, jaxbn.nnx.OwnBatchSync))


def test_the_variables_of_a_state_in_nnx():
    layer = make_nnx(sync=sync.Stale())
    assert set(layer.batch_stats.sync) == {"own", "sent", "everyone", "received"}
    own = nnx.state(layer, jaxbn.nnx.OwnBatchSync)
    assert {leaf.shape for leaf in jax.tree.leaves(own)} == {(1, 3)}
    shared = nnx.state(layer, jaxbn.nnx.BatchSync)
    assert {leaf.shape for leaf in jax.tree.leaves(shared)} == {(3,)}
    stats = jax.tree.map(lambda leaf: leaf + 1, layer.batch_stats)
    layer.store(stats)
    chex.assert_trees_all_equal(layer.batch_stats, stats)
    assert not jax.tree.leaves(states(make_nnx()))


def test_inference_moves_no_state():
    layer = make_nnx(sync=sync.FrozenAfter(1))
    for _ in range(2):
        layer(X)
    assert layer.batch_stats.sync == {"step": 1}
    layer.eval()
    before = jax.tree.map(np.array, states(layer))
    layer(X)
    chex.assert_trees_all_equal(states(layer), before)
