"""The limits in which stale synchronisation is exact, and what must not break it."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn import linen, sync_policies

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((16, 5, 3)) * [1.0, 2.0, 0.1] + [0.0, 4.0, 1.0]).astype("f4")
DY = RNG.standard_normal(X.shape).astype(np.float32)
SCALE, BIAS = jnp.array([1.0, 2.0, -0.5]), jnp.array([0.0, 1.0, 2.0])
STATS = jaxbn.init_batch_stats(3)


def steps(policy, batches, dys, group_size=2, **options):
    """Returns y, dx and the running statistics of every step, and the last state."""
    workers = len(batches[0]) // group_size
    fresh = policy.init((3,), jnp.dtype("float32"))
    states = sync_policies.for_workers({"batch_sync": {"bn": fresh}}, workers)
    states, stats, made = states["batch_sync"], STATS, []

    @jax.jit
    def step(x, dy, states, stats):
        def loss(x, said):
            given = sync_policies.with_said(states, said)["bn"]
            y, new = jaxbn.batch_norm_train(
                x,
                SCALE,
                BIAS,
                sync_policies.WithSync(stats, given),
                group_size=group_size,
                sync=policy,
                **options,
            )
            return jnp.sum(y * dy), (y, new)

        (dx, said), (y, new) = jax.grad(loss, (0, 1), has_aux=True)(
            x, sync_policies.said_of(states)
        )
        return y, dx, new.batch_stats, sync_policies.exchange({"bn": new.sync}, said)

    for x, dy in zip(batches, dys, strict=True):
        y, dx, stats, states = step(x, dy, states, stats)
        made.append((y, dx, stats))
    return made, states["bn"]


def exact(x, dy, **options):
    def normalized(x):
        return jaxbn.batch_norm_train(x, SCALE, BIAS, STATS, **options)

    y, pull, stats = jax.vjp(normalized, x, has_aux=True)
    return y, pull(jnp.asarray(dy))[0], stats


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_equal_moments_at_every_step_are_exact(activation):
    """The gradient is exact once the sums of steps with other moments are forgotten."""
    policy = sync_policies.Stale(0.5)
    made, _ = steps(policy, [X] * 30, [DY] * 30, activation=activation)
    y, dx, _ = exact(X, DY, activation=activation)
    np.testing.assert_allclose(made[1][0], y, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(made[-1][1], dx, rtol=1e-4, atol=1e-4)
    assert np.abs(made[0][0] - y).max() > 0.1  # The first step is local.


def test_without_the_backward_term_the_gradient_is_another():
    policy = sync_policies.Stale(0.5, backward=False)
    made, _ = steps(policy, [X] * 30, [DY] * 30)
    y, dx, _ = exact(X, DY)
    np.testing.assert_allclose(made[-1][0], y, rtol=1e-4, atol=2e-5)
    assert np.abs(made[-1][1] - dx).max() > 0.1


def test_while_peers_are_unknown_no_gradient_passes():
    """The variance of a few examples may be tiny, and its root is the divisor."""
    far = X + np.array([0.0, 0.0, 1e3], np.float32)
    made, _ = steps(sync_policies.Stale(), [X, X, far, far], [DY] * 4)
    passes = [np.any(np.asarray(dx) != 0, (0, 1)).tolist() for _, dx, _ in made]
    assert passes[0] == [False] * 3
    assert passes[1] == [True] * 3
    # The sums of the third channel are about a centre that is too far away. The
    # channel starts anew in the next step.
    assert passes[2] == [True] * 3
    assert passes[3] == [True, True, False]


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_one_worker_is_plain_batch_normalization(memory):
    batches = [X + n for n in range(4)]
    made, _ = steps(sync_policies.Stale(memory), batches, [DY] * 4, group_size=16)
    for (y, dx, _), x in zip(made, batches, strict=True):
        expected_y, expected_dx, _ = exact(x, DY)
        np.testing.assert_allclose(y, expected_y, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(dx, expected_dx, rtol=1e-4, atol=1e-4)


def test_running_statistics_are_exact_one_step_late():
    batches = [X + n for n in range(4)]
    made, _ = steps(sync_policies.Stale(), batches, [DY] * 4)
    expected = STATS
    for (_, _, stats), x in zip(made, [None, *batches[:-1]], strict=True):
        if x is not None:
            _, expected = jaxbn.batch_norm_train(x, None, None, expected)
        chex.assert_trees_all_close(stats, expected, rtol=1e-5)


def test_a_large_mean():
    """The first step finds the centre, the second the moments, the third is exact."""
    x = X * 0.1 + 1e3
    made, _ = steps(sync_policies.Stale(), [x] * 4, [DY] * 4)
    y, _, _ = exact(x, DY)
    # The mean of 1000 is known to 6e-5, and divided by a standard deviation of .01.
    np.testing.assert_allclose(made[2][0], y, atol=5e-2)
    chex.assert_tree_all_finite(made)
    # Sums about a centre so far away say nothing about the variance.
    chex.assert_trees_all_equal(made[1][2], STATS)
    assert np.all(made[-1][2].var < STATS.var)


@pytest.mark.parametrize("where", ["x", "dy"])
def test_what_is_not_finite_is_forgotten(where):
    batches, dys = [X] * 6, [DY] * 6
    spoiled = np.array(X if where == "x" else DY)
    spoiled[3, 1] = np.nan
    (batches if where == "x" else dys)[2] = spoiled
    made, state = steps(sync_policies.Stale(), batches, dys)
    chex.assert_tree_all_finite((made[3:], state))
    y, _, _ = exact(X, DY)
    np.testing.assert_allclose(made[3][0], y, rtol=1e-4, atol=2e-5)


def test_empty_workers_take_what_they_remember():
    mask = np.ones((16, 1, 1), bool)
    mask[:4] = False
    policy = sync_policies.Stale()
    made, _ = steps(policy, [X] * 3, [DY * mask] * 3, mask=jnp.asarray(mask))
    y, _, _ = exact(X, DY, mask=mask)
    np.testing.assert_allclose(made[-1][0], y, rtol=1e-4, atol=2e-5)


@pytest.mark.exhaustive
def test_second_derivative_takes_peers_as_constant():
    """With one worker it is the second derivative of Batch Normalization itself."""
    policy = sync_policies.Stale()
    state = policy.init((3,), jnp.dtype("float32"))

    def loss(x, **options):
        stats = sync_policies.WithSync(STATS, state) if options else STATS
        y, _ = jaxbn.batch_norm_train(x, SCALE, BIAS, stats, **options)
        return jnp.sum(jnp.tanh(y))

    def product(**options):
        grad = jax.grad(lambda x: loss(x, **options))
        return jax.grad(lambda x: jnp.vdot(grad(x), DY))(jnp.asarray(X))

    expected = product()
    made = product(group_size=16, sync=policy)
    np.testing.assert_allclose(made, expected, rtol=1e-3, atol=1e-4)


def test_forward_mode_is_refused_with_the_backward_term_only():
    state = sync_policies.Stale().init((3,), jnp.dtype("float32"))

    def y(x, backward):
        policy = sync_policies.Stale(backward=backward)
        stats = sync_policies.WithSync(STATS, state)
        return jaxbn.batch_norm_train(
            x, SCALE, BIAS, stats, group_size=16, sync=policy
        )[0]

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: y(x, True), (X,), (DY,))
    jax.jvp(lambda x: y(x, False), (X,), (DY,))


class Twice(nn.Module):
    sync: sync_policies.Policy

    @nn.compact
    def __call__(self, x):
        layer = linen.BatchNorm(
            use_running_average=False, group_size=2, sync=self.sync, name="bn"
        )
        parts = jnp.split(x, 2, axis=1)
        return jnp.concatenate([layer(part) for part in parts], 1)


@pytest.mark.exhaustive
def test_a_layer_that_is_called_twice_says_the_sum_of_both_calls():
    net = Twice(sync_policies.Stale())
    x, dy = X[:, :4], jnp.asarray(DY[:, :4])
    variables = sync_policies.for_workers(net.init(jax.random.key(0), x), 8)
    states = variables["batch_sync"]
    for _ in range(2):

        def loss(said, states=states):
            given = {**variables, "batch_sync": sync_policies.with_said(states, said)}
            y, new = net.apply(given, x, mutable=["batch_stats", "batch_sync"])
            return jnp.sum(y * dy), (y, new["batch_sync"])

        said, (y, new) = jax.grad(loss, has_aux=True)(sync_policies.said_of(states))
        states = sync_policies.exchange(new, said)
    heard = states["bn"]["heard"]
    np.testing.assert_allclose(heard["count"], np.full(3, x.size // 3))
    np.testing.assert_allclose(heard["gradient"], dy.sum((0, 1)), rtol=1e-4, atol=1e-5)
    center = states["bn"]["everyone"]["mean"]
    np.testing.assert_allclose(
        heard["offset"], (x - np.asarray(center)).sum((0, 1)), rtol=1e-4, atol=1e-4
    )
    x_hat = y  # The scale is 1, the bias 0.
    product = jnp.sum(x_hat * dy, (0, 1))
    np.testing.assert_allclose(heard["product"], product, rtol=1e-4, atol=1e-4)


def test_errors():
    for memory in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`memory` must lie in \[0, 1\)"):
            sync_policies.Stale(memory)
    for backward in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"`backward` must lie in \[0, 1\]"):
            sync_policies.Stale(backward=backward)
    with pytest.raises(TypeError, match="for real inputs, got complex64"):
        sync_policies.Stale().init((3,), jnp.dtype("complex64"))


def test_floats_per_channel():
    """The study's table lists the number of floats that the policy remembers."""
    state = sync_policies.Stale().init((7,), jnp.dtype("float32"))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 21 * 7
