"""Tests which steps are exact; test_sync_policies tests the numbers of all steps."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn import sync_policies

RNG = np.random.default_rng(0)
BATCHES = [RNG.standard_normal((8, 3)).astype(np.float32) + n for n in range(6)]


def run(policy, batches):
    """Returns y of every step, and the last running statistics and state."""
    state = policy.init((3,), jnp.dtype("float32"))
    stats, made = jaxbn.init_batch_stats(3), []
    for x in batches:
        y, (stats, state) = jaxbn.batch_norm_train(
            x,
            None,
            None,
            sync_policies.WithSync(stats, state),
            group_size=2,
            sync=policy,
        )
        made.append(y)
    return made, stats, state


def exact(x):
    return jaxbn.batch_norm_train(x, None, None, jaxbn.init_batch_stats(3))[0]


def test_every_third():
    made, stats, _ = run(sync_policies.Periodic(3), BATCHES)
    for step, (y, x) in enumerate(zip(made, BATCHES, strict=True)):
        same = np.allclose(y, exact(x), rtol=1e-5, atol=1e-5)
        assert same == (step % 3 == 0), step
    expected = jaxbn.init_batch_stats(3)
    for x in BATCHES[::3]:
        _, expected = jaxbn.batch_norm_train(x, None, None, expected)
    chex.assert_trees_all_close(stats, expected, rtol=1e-6)


def test_frozen_between_ignores_what_is_not_finite():
    spoiled = [BATCHES[0], BATCHES[1], np.full((8, 3), np.nan, np.float32)]
    policy = sync_policies.Periodic(2, "frozen")
    _, stats, state = run(policy, spoiled)
    assert state["step"] == 1
    np.testing.assert_allclose(state["mean"], BATCHES[0].mean(0), rtol=1e-5, atol=1e-6)
    chex.assert_tree_all_finite((stats, state))


@pytest.mark.exhaustive
def test_frozen_after():
    made, stats, state = run(sync_policies.FrozenAfter(2), BATCHES)
    np.testing.assert_allclose(made[1], exact(BATCHES[1]), rtol=1e-5, atol=1e-6)
    expected = jaxbn.batch_norm_inference(BATCHES[5], None, None, stats)
    np.testing.assert_allclose(made[5], expected, rtol=1e-6)
    assert state["step"] == 2
    from_the_start, initial, _ = run(sync_policies.FrozenAfter(0), BATCHES)
    chex.assert_trees_all_equal(initial, jaxbn.init_batch_stats(3))
    std = np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(from_the_start[0], BATCHES[0] / std, rtol=1e-6)


@pytest.mark.parametrize(
    ("policy", "arguments", "message"),
    [
        (sync_policies.Periodic, (0,), "`every` must be at least 1"),
        (sync_policies.Periodic, (1.5,), "`every` must be an int"),
        (sync_policies.Periodic, (2, "stale"), "`between` must be 'local' or 'frozen'"),
        (sync_policies.FrozenAfter, (-1,), "`step` must be at least 0"),
        (sync_policies.FrozenAfter, (True,), "`step` must be an int"),
    ],
)
def test_errors(policy, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        policy(*arguments)
