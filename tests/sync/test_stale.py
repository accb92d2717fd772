"""The limits in which stale synchronisation is exact, and what must not break it."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn import linen, sync

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((16, 5, 3)) * [1.0, 2.0, 0.1] + [0.0, 4.0, 1.0]).astype("f4")
DY = RNG.standard_normal(X.shape).astype(np.float32)
SCALE, BIAS = jnp.array([1.0, 2.0, -0.5]), jnp.array([0.0, 1.0, 2.0])
STATS = jaxbn.init_batch_stats(3)


@functools.cache
def make_step(policy, group_size, activation):
    """Returns a jitted function of (x, dy, mask, stats) to y, dx and new statistics."""

    @jax.jit
    def step(x, dy, mask, stats):
        def loss(x, messages):
            y, new = jaxbn.batch_norm_train(
                x,
                SCALE,
                BIAS,
                sync.with_messages(stats, messages),
                mask=mask,
                activation=activation,
                group_size=group_size,
                sync=policy,
            )
            return jnp.sum(y * dy), (y, new)

        (dx, cotangents), (y, new) = jax.grad(loss, (0, 1), has_aux=True)(
            x, sync.messages_of(stats)
        )
        return y, dx, sync.exchange(new, cotangents)

    return step


def steps(policy, batches, dys, group_size=2, mask=None, activation=None):
    """Returns y, dx and the running statistics of every step, and the last state."""
    stats = jaxbn.init_batch_stats(3, sync=policy)
    stats = sync.for_workers(stats, len(X) // group_size)
    step, made = make_step(policy, group_size, activation), []
    for x, dy in zip(batches, dys, strict=True):
        y, dx, stats = step(x, dy, mask, stats)
        made.append((y, dx, stats._replace(sync={})))
    return made, stats.sync


def exact(x, dy, **options):
    def normalized(x):
        return jaxbn.batch_norm_train(x, SCALE, BIAS, STATS, **options)

    y, pull, stats = jax.vjp(normalized, x, has_aux=True)
    return y, pull(jnp.asarray(dy))[0], stats


def assert_exact(made, x, dy, **options):
    y, dx, _ = exact(x, dy, **options)
    np.testing.assert_allclose(made[0], y, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(made[1], dx, rtol=1e-4, atol=1e-4)


@pytest.mark.first_case
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_equal_moments_in_every_step_are_exact(activation):
    """The gradient is exact once the sums of steps with other moments are forgotten."""
    made, _ = steps(sync.Stale(0.5), [X] * 30, [DY] * 30, activation=activation)
    assert_exact(made[-1], X, DY, activation=activation)
    y, _, _ = exact(X, DY, activation=activation)
    np.testing.assert_allclose(made[1][0], y, rtol=1e-4, atol=2e-5)
    assert np.abs(made[0][0] - y).max() > 0.1  # The first step is local.


def test_without_the_backward_term_only_the_output_is_exact():
    made, _ = steps(sync.Stale(0.5, backward=False), [X] * 30, [DY] * 30)
    y, dx, _ = exact(X, DY)
    np.testing.assert_allclose(made[-1][0], y, rtol=1e-4, atol=2e-5)
    assert np.abs(made[-1][1] - dx).max() > 0.1


def test_no_gradient_passes_while_the_other_workers_are_unknown():
    """The variance of a few examples may be tiny, and its root is the divisor."""
    far = X + np.array([0.0, 0.0, 1e3], np.float32)
    made, _ = steps(sync.Stale(), [X, X, far, far], [DY] * 4)
    passes = [np.any(np.asarray(dx) != 0, (0, 1)).tolist() for _, dx, _ in made]
    assert passes[:3] == [[False] * 3, [True] * 3, [True] * 3]
    # The sums of the third step are about a centre that is too far from the third
    # channel, so that this channel starts anew.
    assert passes[3] == [True, True, False]


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_one_worker_is_plain_batch_normalization(memory):
    batches = [X + n for n in range(4)]
    made, _ = steps(sync.Stale(memory), batches, [DY] * 4, group_size=16)
    for one, x in zip(made, batches, strict=True):
        assert_exact(one, x, DY)


def test_running_statistics_are_exact_one_step_late():
    batches = [X + n for n in range(4)]
    made, _ = steps(sync.Stale(), batches, [DY] * 4)
    right = STATS
    for (_, _, stats), x in zip(made, [None, *batches[:-1]], strict=True):
        if x is not None:
            _, right = jaxbn.batch_norm_train(x, None, None, right)
        chex.assert_trees_all_close(stats, right, rtol=1e-5)


def test_a_large_mean():
    """The first step finds the centre, the second the moments, the third is exact."""
    x = X * 0.1 + 1e3
    made, _ = steps(sync.Stale(), [x] * 4, [DY] * 4)
    y, _, _ = exact(x, DY)
    # A mean of 1000 is known to 6e-5, and is divided by a standard deviation of 0.01.
    np.testing.assert_allclose(made[2][0], y, atol=5e-2)
    chex.assert_tree_all_finite(made)
    # Sums about a centre so far away tell nothing about the variance.
    chex.assert_trees_all_equal(made[1][2], STATS)
    assert np.all(made[-1][2].var < STATS.var)


@pytest.mark.parametrize("where", ["x", "dy"])
def test_a_step_that_is_not_finite_is_forgotten(where):
    batches, dys = [X] * 6, [DY] * 6
    spoiled = np.array(X if where == "x" else DY)
    spoiled[3, 1] = np.nan
    (batches if where == "x" else dys)[2] = spoiled
    made, state = steps(sync.Stale(), batches, dys)
    chex.assert_tree_all_finite((made[3:], state))
    y, _, _ = exact(X, DY)
    np.testing.assert_allclose(made[3][0], y, rtol=1e-4, atol=2e-5)


def test_empty_workers_use_what_they_remember():
    mask = np.ones((16, 1, 1), bool)
    mask[:4] = False
    made, _ = steps(sync.Stale(), [X] * 3, [DY * mask] * 3, mask=mask)
    y, _, _ = exact(X, DY, mask=mask)
    np.testing.assert_allclose(made[-1][0], y, rtol=1e-4, atol=2e-5)


@pytest.mark.exhaustive
def test_the_second_derivative_of_one_worker_is_exact():
    stats = jaxbn.init_batch_stats(3, sync=sync.Stale())

    def product(stats, **options):
        def loss(x):
            y, _ = jaxbn.batch_norm_train(x, SCALE, BIAS, stats, **options)
            return jnp.sum(jnp.tanh(y))

        return jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), DY)))(X)

    made = product(stats, group_size=16, sync=sync.Stale())
    np.testing.assert_allclose(made, product(STATS), rtol=1e-3, atol=1e-4)


@pytest.mark.exhaustive
def test_only_the_backward_term_has_no_forward_mode():
    stats = jaxbn.init_batch_stats(3, sync=sync.Stale())

    def y(x, backward):
        policy = sync.Stale(backward=backward)
        return jaxbn.batch_norm_train(
            x, SCALE, BIAS, stats, group_size=16, sync=policy
        )[0]

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: y(x, True), (X,), (DY,))
    jax.jvp(lambda x: y(x, False), (X,), (DY,))


class Twice(nn.Module):
    """A net that calls its layer twice in a step."""

    @nn.compact
    def __call__(self, x):
        layer = linen.BatchNorm(False, group_size=2, sync=sync.Stale(), name="bn")
        return jnp.concatenate([layer(part) for part in jnp.split(x, 2, axis=1)], 1)


@pytest.mark.exhaustive
def test_a_layer_that_is_called_twice_sends_the_sum_of_both_calls():
    net, x, dy = Twice(), X[:, :4], jnp.asarray(DY[:, :4])
    variables = sync.for_workers(net.init(jax.random.key(0), x), 8)

    @jax.jit
    def step(states):
        def loss(messages):
            given = {**variables, "batch_sync": sync.with_messages(states, messages)}
            y, new = net.apply(given, x, mutable=["batch_stats", "batch_sync"])
            return jnp.sum(y * dy), (y, new["batch_sync"])

        cotangents, (y, new) = jax.grad(loss, has_aux=True)(sync.messages_of(states))
        return y, sync.exchange(new, cotangents)

    _, states = step(variables["batch_sync"])
    y, states = step(states)
    received = states["bn"]["received"]
    center = np.asarray(states["bn"]["everyone"]["mean"])
    sums = {
        "count": np.full(3, x.size // 3),
        "offset": (x - center).sum((0, 1)),
        "gradient": dy.sum((0, 1)),
        "product": jnp.sum(y * dy, (0, 1)),  # The scale is 1 and the bias 0.
    }
    for name, right in sums.items():
        np.testing.assert_allclose(received[name], right, rtol=1e-4, atol=1e-4)


def test_errors():
    for memory in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`memory` must lie in \[0, 1\)"):
            sync.Stale(memory)
    for backward in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"`backward` must lie in \[0, 1\]"):
            sync.Stale(backward=backward)
    with pytest.raises(TypeError, match="for real inputs, got complex64"):
        sync.Stale().init((3,), jnp.dtype("complex64"))


def test_floats_per_channel():
    """The table of the study lists the number of floats that the policy keeps."""
    state = sync.Stale().init((7,), jnp.dtype("float32"))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 21 * 7
