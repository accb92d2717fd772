"""Variants with a memory, over several steps, against their papers' formulas."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

import jaxbn
from jaxbn import sync, training, variants
from jaxbn.linen import BatchNorm
from tests.variants import cases, test_contract
from tests.variants.cases import EPSILON

RNG = np.random.default_rng(1)
EXAMPLES, INPUTS, CHANNELS, STEPS = 6, 5, 3, 6
US = RNG.standard_normal((STEPS, EXAMPLES, INPUTS))
KERNELS = RNG.standard_normal((INPUTS, CHANNELS)) + 0.1 * RNG.standard_normal(
    (STEPS, INPUTS, CHANNELS)
).cumsum(0)
DYS = RNG.standard_normal((STEPS, EXAMPLES, CHANNELS))
SCALE, BIAS = 1 + 0.3 * RNG.standard_normal(CHANNELS), RNG.standard_normal(CHANNELS)


def moments(u, kernel):
    x = u @ kernel
    return jnp.mean(x, 0), jnp.mean(x**2, 0)


def cross_iteration(window, index, u, kernel, scale, bias):
    """Equations 8 to 14 of the paper, with JAX's derivative of the old moments."""
    mean, square = moments(u, kernel)
    means, squares = [mean], [square]
    for old in range(max(0, index - window + 1), index):
        given = functools.partial(moments, US[old])
        change = jax.lax.stop_gradient(kernel) - KERNELS[old]
        values, tangents = jax.jvp(given, (KERNELS[old],), (change,))
        old_mean, old_square = (v + t for v, t in zip(values, tangents, strict=True))
        means.append(old_mean)
        squares.append(jnp.maximum(old_square, old_mean**2))
    mean = sum(means) / len(means)
    var = sum(squares) / len(squares) - mean**2
    return (u @ kernel - mean) / jnp.sqrt(var + EPSILON) * scale + bias


@pytest.mark.first_case
@pytest.mark.parametrize(("window", "warmup"), [(4, 3), (4, 0), (2, 0), (1, 0)])
def test_cross_iteration(window, warmup):
    variant = variants.CrossIteration(INPUTS, window, warmup)
    with jax.enable_x64(True):
        stats = jaxbn.init_batch_stats(CHANNELS, np.float64, variant=variant)
        for index in range(STEPS):
            args = US[index], KERNELS[index], SCALE, BIAS

            def ours(u, kernel, scale, bias, stats=stats):
                return jaxbn.batch_norm_train(
                    u @ kernel,
                    scale,
                    bias,
                    stats,
                    epsilon=EPSILON,
                    factors=(u, kernel),
                    variant=variant,
                )

            y, pull, stats = jax.vjp(ours, *map(jnp.asarray, args), has_aux=True)
            now = window if index >= warmup else 1
            formula = cases.allow(functools.partial(cross_iteration, now, index))
            y_right, pull_right = jax.vjp(formula, *map(jnp.asarray, args))
            chex.assert_trees_all_close(y, y_right, rtol=1e-9, atol=1e-11)
            dy = jnp.asarray(DYS[index])
            chex.assert_trees_all_close(pull(dy), pull_right(dy), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("exchanged", [True, False])
def test_moving_average(exchanged, window):
    """Algorithms 1 and 2 of the paper; without an exchange the gradient has no past."""
    r_max, warmup, momentum = 1.3, 2, 0.9
    variant = variants.MovingAverage(window, r_max, warmup)
    squares, products, running = [], [], np.ones(CHANNELS)
    with jax.enable_x64(True):
        stats = jaxbn.init_batch_stats(CHANNELS, np.float64, variant=variant)
        for index in range(STEPS):
            x, dy = US[index] @ KERNELS[index], DYS[index]

            def ours(x, scale, bias, messages, stats=stats):
                return jaxbn.batch_norm_train(
                    x,
                    scale,
                    bias,
                    sync.with_messages(stats, messages),
                    epsilon=EPSILON,
                    momentum=momentum,
                    unbiased=False,
                    variant=variant,
                )

            args = *map(jnp.asarray, (x, SCALE, BIAS)), sync.messages_of(stats)
            y, pull, stats = jax.vjp(ours, *args, has_aux=True)
            *grads, cotangents = pull(jnp.asarray(dy))
            if exchanged:
                stats = sync.exchange(stats, cotangents)

            squares.append(np.mean(x**2, 0))
            std = np.sqrt(np.mean(squares[-window:], 0) + EPSILON)
            r = np.clip(std / np.sqrt(running + EPSILON), 1 / r_max, r_max)
            r = r if index >= warmup else np.ones(CHANNELS)
            z = x / std
            g = SCALE * r * dy
            products.append(np.mean(g * z, 0))
            known = products[-window:] if exchanged else products[-1:]
            dx = (g - z * np.mean(known, 0)) / std
            right = z * r * SCALE + BIAS, dx, np.sum(dy * z * r, 0), np.sum(dy, 0)
            chex.assert_trees_all_close((y, *grads), right, rtol=1e-9, atol=1e-11)
            running = momentum * running + (1 - momentum) * squares[-1]
            chex.assert_trees_all_close(stats.var, running, rtol=1e-12)
            chex.assert_trees_all_close(stats.mean, np.zeros(CHANNELS))


def test_moving_average_in_the_steps_of_training():
    """The training step exchanges the products, also with a scaled loss."""
    options = {"variant": variants.MovingAverage(3)}
    net, variables, u = test_contract.linen_variables(options)

    def loss_fn(model, batch, train):
        return {"loss": jnp.sum(jnp.sin(model(batch["u"], train=train)), (-2, -1))}

    class Scaled(training.TrainState):
        dynamic_scale: DynamicScale = DynamicScale(scale=64.0)

    step = training.make_train_step(loss_fn)
    states = [
        kind.create(net.apply, variables, optax.sgd(0.1))
        for kind in (training.TrainState, Scaled)
    ]
    for _ in range(4):
        states = [step(state, {"u": u})[0] for state in states]
    plain, scaled = states
    chex.assert_trees_all_close(plain.params, scaled.params, rtol=1e-5, atol=1e-6)
    kept = plain.batch_sync["BatchNorm_0"]["everyone"]
    assert float(kept["count"]) == 2
    assert bool(jnp.all(kept["product"] != 0))
    chex.assert_trees_all_close(
        kept, scaled.batch_sync["BatchNorm_0"]["everyone"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ["numbers", "schedules"])
def test_renorm_over_steps(name):
    """Algorithm 1 of the paper, with the squares of the deviations averaged."""
    limits = (
        (1.5, 0.5),
        (
            optax.linear_schedule(1, 3, 4, 1),
            optax.linear_schedule(0, 5, 4, 1),
        ),
    )
    r_max, d_max = limits[name == "schedules"]
    variant = variants.Renorm(r_max, d_max, warmup_steps=2)
    mean, var, momentum = np.zeros(CHANNELS), np.ones(CHANNELS), 0.8
    stats = jaxbn.init_batch_stats(CHANNELS, variant=variant)
    for index in range(STEPS):
        x = (US[index] @ KERNELS[index]).astype(np.float32)
        y, stats = jaxbn.batch_norm_train(
            x, None, None, stats, epsilon=EPSILON, momentum=momentum, variant=variant
        )
        most, far = (
            float(each(index)) if callable(each) else each for each in (r_max, d_max)
        )
        if index < 2:
            most, far = 1.0, 0.0
        std = np.sqrt(var + EPSILON)
        r = np.clip(np.sqrt(x.var(0) + EPSILON) / std, 1 / most, most)
        d = np.clip((x.mean(0) - mean) / std, -far, far)
        right = (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON) * r + d
        np.testing.assert_allclose(y, right, rtol=1e-4, atol=1e-5)
        mean = momentum * mean + (1 - momentum) * x.mean(0)
        var = momentum * var + (1 - momentum) * x.var(0, ddof=1)
        assert int(stats.variant["steps"]) == index + 1
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats.var, var, rtol=1e-4)


def test_moving_average_is_not_unbiased():
    """Without a mean the second moment needs no m / (m - 1), by default too."""
    variant = variants.MovingAverage(3)
    stats = jaxbn.init_batch_stats(CHANNELS, variant=variant)
    x = jnp.asarray(US[0][:2] @ KERNELS[0], jnp.float32)
    _, stats = jaxbn.batch_norm_train(
        x, None, None, stats, momentum=0.5, variant=variant
    )
    right = 0.5 + 0.5 * jnp.mean(x**2, 0)
    chex.assert_trees_all_close(stats.var, right, rtol=1e-5)
    # A batch without a valid element changes nothing, now or later.
    mask = jnp.zeros((2, 1), bool)
    _, same = jaxbn.batch_norm_train(
        x, None, None, stats, momentum=0.5, variant=variant, mask=mask
    )
    kept = jax.tree.map(lambda leaf: leaf, same._replace(sync=stats.sync))
    chex.assert_trees_all_equal(kept, stats)


@pytest.mark.parametrize(
    "variant", [variants.MovingAverage(1), variants.CrossIteration(INPUTS, 1)]
)
def test_no_state_is_empty(variant):
    """Orbax saves no arrays without elements."""
    state = variant.init((CHANNELS,), jnp.dtype(jnp.float32))
    assert all(leaf.size for leaf in jax.tree.leaves(state))


def test_ghost_makes_one_step_for_each_part():
    """Algorithm 1 of the paper, literally."""
    options = variants.ghost(2, momentum=0.7)
    x = (US[0] @ KERNELS[0]).astype(np.float32)
    stats = jaxbn.init_batch_stats(CHANNELS, estimator=options["estimator"])
    _, stats = jaxbn.batch_norm_train(x, None, None, stats, **options)
    mean, var = np.zeros(CHANNELS), np.ones(CHANNELS)
    for part in np.split(x, EXAMPLES // 2):
        mean = 0.7 * mean + 0.3 * part.mean(0)
        var = 0.7 * var + 0.3 * part.var(0, ddof=1)
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats.var, var, rtol=1e-4)


def test_state_counts_only_updates():
    """Neither `recalibrate` nor passes that update nothing end the warm-up early."""
    layer = BatchNorm(use_running_average=False, variant=variants.Renorm())
    x = jnp.asarray(US[0], jnp.float32)
    given = layer.init(jax.random.key(0), x)

    def steps(variables):
        return int(variables["batch_stats"]["steps"])

    def call(model, x):
        return model(x)

    assert steps(given) == 0
    assert steps(jaxbn.recalibrate(layer, given, [x, x], call)) == 0
    _, new = layer.apply(
        given, x, update_running_average=False, mutable=["batch_stats"]
    )
    assert steps(new) == 0
    _, new = layer.apply(given, x, mutable=["batch_stats"])
    assert steps(new) == 1
    # Several passes before one update are one step.
    _, moments = layer.apply(given, x, mutable=["batch_moments"])
    after = jaxbn.end_accumulation(given["batch_stats"], **moments)
    assert int(after["steps"]) == 1
