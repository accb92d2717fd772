"""Running statistics: each estimator alone, in the function and in both layers."""

import chex
import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn import BatchStats, estimators, testing
from tests import users_estimator

BATCHES = 3 + np.random.default_rng(0).standard_normal((5, 8, 2)).astype(np.float32)
NAMES = ("ema", "debiased", "cumulative", "window")
OTHERS = NAMES[1:]
OWN = {
    "ema": estimators.ema(0.9),
    "debiased": estimators.debiased(0.9),
    "cumulative": estimators.cumulative(),
    "window": estimators.window(3),
}


def moments(count, mean, var, channels=1):
    return jaxbn.Moments(
        *(jnp.full(channels, value, jnp.float32) for value in (count, mean, var))
    )


def follow(estimator, batches, shape=1):
    stats = estimator.init(shape, jnp.float32)
    for batch in batches:
        stats = estimator.update(stats, batch)
    return stats


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("unbiased", [True, False])
def test_the_formula_of_the_moving_average(momentum, unbiased):
    old = BatchStats(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
    estimator = estimators.ema(momentum, unbiased)
    new = estimator.update(old, moments(5, 7.0, 8.0, channels=2))
    var = 8.0 * 5 / 4 if unbiased else 8.0
    mean = momentum * np.array([1, 2]) + (1 - momentum) * 7
    np.testing.assert_allclose(new.mean, mean, rtol=1e-6)
    var = momentum * np.array([3, 4]) + (1 - momentum) * var
    np.testing.assert_allclose(new.var, var, rtol=1e-6)


@pytest.mark.first_case
@pytest.mark.parametrize("name", OTHERS)
def test_the_first_batch_is_the_estimate(name):
    stats = follow(OWN[name], [moments(5, 7.0, 8.0)])
    np.testing.assert_allclose((stats.mean[0], stats.var[0]), (7, 10), rtol=1e-6)


def test_average_is_debiased_with_any_momentum():
    values = np.array([1.0, 4.0, 9.0])
    batches = [moments(5, value, value**2) for value in values]
    for momentum in (0.0, 0.5, 1.0):
        stats = follow(estimators.debiased(momentum, unbiased=False), batches)
        weights = np.array([momentum**2, momentum, 1.0])
        weights /= weights.sum()
        expected = weights @ values, weights @ values**2
        if momentum == 1.0:  # No batch ever counts.
            expected = 0.0, 1.0
        np.testing.assert_allclose((stats.mean[0], stats.var[0]), expected, rtol=1e-6)


def test_window_forgets():
    batches = [moments(5, value, 1.0) for value in (100.0, 1.0, 2.0, 3.0)]
    stats = follow(OWN["window"], batches)
    np.testing.assert_allclose((stats.mean[0], stats.var[0]), (2.0, 1.25), rtol=1e-6)
    stats = follow(OWN["window"], batches[:2])
    np.testing.assert_allclose(stats.mean[0], 50.5, rtol=1e-6)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    ("count", "mean", "var"),
    [(0, 0, 0), (1, 7, 0), (5, np.nan, 1), (5, 1, np.inf), (5, -np.inf, 1)],
)
def test_an_unusable_batch_changes_nothing(name, count, mean, var):
    for before in ([], [moments(5, 7.0, 8.0)]):
        stats = follow(OWN[name], before)
        new = OWN[name].update(stats, moments(count, mean, var))
        chex.assert_trees_all_equal(new, stats)


@pytest.mark.first_case
@pytest.mark.parametrize("name", OWN)
def test_each_channel_for_itself(name):
    both = jaxbn.Moments(jnp.array([5.0, 1.0]), jnp.array([2.0, 2.0]), jnp.ones(2))
    after = follow(OWN[name], [both, both], shape=2)
    alone = follow(OWN[name], [moments(5, 2.0, 1.0)] * 2)
    start = OWN[name].init(2, jnp.float32)
    leaves = zip(*map(jax.tree.leaves, (after, alone, start)), strict=True)
    for leaf, one, first in leaves:
        np.testing.assert_array_equal(leaf[:1], one)
        np.testing.assert_array_equal(leaf[1], first[1])


@pytest.mark.first_case
@pytest.mark.parametrize("name", OWN)
def test_scan_jit_and_no_gradient(name):
    estimator = OWN[name]

    @jax.jit
    def scanned(x):
        def body(stats, x):
            return estimator.update(stats, jaxbn.batch_moments(x)), None

        return jax.lax.scan(body, estimator.init(2, jnp.float32), x)[0]

    stats = scanned(BATCHES)
    chex.assert_trees_all_equal_shapes_and_dtypes(stats, estimator.init(2, jnp.float32))
    expected = follow(estimator, [jaxbn.batch_moments(x) for x in BATCHES], shape=2)
    chex.assert_trees_all_close(stats, expected, rtol=1e-6)
    total = lambda x: jnp.sum(scanned(x).mean) + jnp.sum(scanned(x).var)  # noqa: E731
    np.testing.assert_array_equal(jax.grad(total)(BATCHES), 0)


@pytest.mark.parametrize("name", OWN)
def test_nothing_overflows_or_becomes_negative(name):
    largest = np.finfo(np.float32).max
    batches = [moments(1e6, sign * largest, largest / 2) for sign in (1, -1, 1, 1)]
    stats = follow(OWN[name], batches)
    assert np.all(np.isfinite(stats.mean))
    assert np.all(np.isfinite(stats.var) & (stats.var >= 0))


@hypothesis.given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=1,
        max_size=8,  # Each length is compiled.
    )
)
@hypothesis.settings(deadline=None)
def test_no_finite_input_makes_them_non_finite(values):
    batch = jaxbn.batch_moments(jnp.array(values, jnp.float32)[:, None])
    for momentum in (0.0, 0.9):
        new = estimators.ema(momentum).update(jaxbn.init_batch_stats(1), batch)
        testing.assert_valid_batch_stats(new)


def test_weights_of_half_precision_statistics_go_on_counting():
    stats = OWN["cumulative"].init(1, jnp.bfloat16)
    assert stats.mean.dtype == jnp.bfloat16
    one = moments(5, 1.0, 1.0)
    update = lambda _, stats: OWN["cumulative"].update(stats, one)  # noqa: E731
    stats = jax.lax.fori_loop(0, 400, update, stats)
    assert float(stats.extra["weight"][0]) == 400


def test_init():
    chex.assert_trees_all_equal(
        jaxbn.init_batch_stats((2,)), BatchStats(jnp.zeros(2), jnp.ones(2))
    )
    stats = jaxbn.init_batch_stats(2, jnp.complex64)
    chex.assert_type([stats.mean, stats.var], [jnp.complex64, jnp.float32])
    policy = jaxbn.sync.FrozenAfter(3)
    stats = jaxbn.init_batch_stats(2, estimator="debiased", sync=policy)
    assert set(stats.extra) == {"weight"}
    assert set(stats.sync) == {"step"}


def train(stats, estimator, **options):
    for x in BATCHES:
        _, stats = jaxbn.batch_norm_train(
            x, None, None, stats, estimator=estimator, **options
        )
    return stats


@pytest.mark.parametrize("options", [{}, {"group_size": 4}])
def test_an_estimator_of_a_user(options):
    start = jaxbn.init_batch_stats(2, estimator=users_estimator.Cumulative())
    stats = train(start, users_estimator.Cumulative(), **options)
    chex.assert_trees_all_equal_shapes_and_dtypes(stats, start)
    assert int(stats.extra["batches"]) == len(BATCHES)
    np.testing.assert_allclose(stats.mean, BATCHES.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(stats.var, BATCHES.var(1).mean(0), rtol=1e-4)


def test_momentum_and_unbiased_are_shorthand_for_the_average():
    start = jaxbn.init_batch_stats(2)
    expected = train(start, "ema", momentum=0.7, unbiased=False)
    chex.assert_trees_all_equal(train(start, estimators.ema(0.7, False)), expected)


def by_hand(name, momentum=0.9):
    """Returns averages of means and of unbiased variances, in float64."""
    x = BATCHES.astype(np.float64)
    weights = np.ones(len(x))
    if name == "debiased":
        weights = momentum ** np.arange(len(x) - 1, -1, -1)
    weights = weights[:, None] / weights.sum()
    return (weights * x.mean(1)).sum(0), (weights * x.var(1, ddof=1)).sum(0)


def options_of(name):
    return {"estimator": name} | ({"momentum": 0.9} if name == "debiased" else {})


def function(name):
    options = options_of(name)
    stats = train(
        jaxbn.init_batch_stats(2, estimator=name), options.pop("estimator"), **options
    )
    y = jaxbn.batch_norm_inference(BATCHES[0], None, None, stats)
    return {"mean": stats.mean, "var": stats.var, **stats.extra}, y


def linen(name):
    layer = jaxbn.linen.BatchNorm(**options_of(name))
    variables = layer.init(jax.random.key(0), BATCHES[0], use_running_average=True)
    for x in BATCHES:
        _, updates = layer.apply(
            variables, x, use_running_average=False, mutable=["batch_stats"]
        )
        variables |= updates
    y = layer.apply(variables, BATCHES[0], use_running_average=True)
    return variables["batch_stats"], y


def in_nnx(name):
    layer = jaxbn.nnx.BatchNorm(2, **options_of(name), rngs=nnx.Rngs(0))
    for x in BATCHES:
        layer(x)
    layer.eval()
    state = nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))
    return state, layer(BATCHES[0])


@pytest.mark.first_case
@pytest.mark.parametrize("name", OTHERS)
def test_function_and_layers_agree(name):
    stats, y = function(name)
    for other in (linen, in_nnx):
        other_stats, other_y = other(name)
        chex.assert_trees_all_equal(dict(other_stats), stats)
        np.testing.assert_array_equal(other_y, y)
    mean, var = by_hand(name)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    expected = (BATCHES[0] - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_only_the_default_keeps_no_more_than_flax():
    kept = {name: set(linen(name)[0]) for name in NAMES}
    assert kept["ema"] == {"mean", "var"}
    for name in OTHERS:
        assert kept[name] > {"mean", "var"}


@pytest.mark.parametrize("name", OTHERS)
def test_flax_takes_the_estimate_from_the_checkpoint(name):
    stats, y = linen(name)
    flax = nn.BatchNorm(use_running_average=True)
    shared = {"mean": stats["mean"], "var": stats["var"]}
    params = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
    theirs = flax.apply({"params": params, "batch_stats": shared}, BATCHES[0])
    np.testing.assert_allclose(theirs, y, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_reset(name):
    layer = jaxbn.linen.BatchNorm(False, estimator=name)
    fresh = layer.init(jax.random.key(0), BATCHES[0])
    _, used = layer.apply(fresh, BATCHES[0], mutable=["batch_stats"])
    tree = {"net": {"bn": used["batch_stats"]}, "step": jnp.array(7)}
    reset = jaxbn.reset_batch_stats(tree)
    chex.assert_trees_all_equal(reset["net"]["bn"], fresh["batch_stats"])
    assert int(reset["step"]) == 7
    state = nnx.state(jaxbn.nnx.BatchNorm(2, estimator=name, rngs=nnx.Rngs(0)))
    chex.assert_trees_all_equal(
        jaxbn.reset_batch_stats({"bn": state})["bn"]["mean"], state["mean"]
    )
    stats = jaxbn.init_batch_stats(2, estimator=name)
    chex.assert_trees_all_equal(jaxbn.reset_batch_stats(train(stats, name)), stats)


def test_an_estimator_with_settings_of_its_own():
    layer = jaxbn.linen.BatchNorm(False, estimator=estimators.window(2))
    variables = layer.init(jax.random.key(0), BATCHES[0])
    for x in BATCHES:
        _, updates = layer.apply(variables, x, mutable=["batch_stats"])
        variables |= updates
    last = BATCHES[-2:].astype(np.float64)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], last.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(stats["var"], last.var(1, ddof=1).mean(0), rtol=1e-5)


def test_statistics_of_complex_input():
    layer = jaxbn.linen.BatchNorm(False, estimator="debiased")
    x = BATCHES[0] + 1j * BATCHES[1]
    variables = layer.init(jax.random.key(0), x)
    _, updates = layer.apply(variables, x, mutable=["batch_stats"])
    stats = updates["batch_stats"]
    chex.assert_trees_all_equal_dtypes(stats, variables["batch_stats"])
    np.testing.assert_allclose(stats["mean"], x.mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimator": "mean"}, ValueError, "`estimator` must be .* got 'mean'"),
        ({"estimator": 0.9}, TypeError, r"`estimator` must be one of .* got 0\.9"),
        (
            {"estimator": users_estimator.Cumulative},
            TypeError,
            "`estimator` must be one of .* got <class",
        ),
        ({"estimator": "debiased", "momentum": 2}, ValueError, "`momentum` .* got 2"),
        ({"estimator": "window", "momentum": 0.9}, ValueError, "`momentum` has no eff"),
        ({"estimator": OWN["ema"], "momentum": 0.5}, ValueError, "`momentum` has no"),
        ({"estimator": OWN["ema"], "unbiased": False}, ValueError, "`unbiased` has no"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        jaxbn.batch_norm_train(
            BATCHES[0], None, None, jaxbn.init_batch_stats(2), **options
        )
    for layer in (
        lambda: jaxbn.linen.BatchNorm(False, **options).init(
            jax.random.key(0), BATCHES[0]
        ),
        lambda: jaxbn.nnx.BatchNorm(2, **options, rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(error, match=message):
            layer()


def test_bad_statistics():
    for stats, message in (
        (jaxbn.init_batch_stats(2), r"`batch_stats.extra` must hold \['weight'\]"),
        ({"mean": 0.0}, "`batch_stats` must be a `BatchStats`, got dict"),
    ):
        with pytest.raises(TypeError, match=message):
            jaxbn.batch_norm_train(
                BATCHES[0], None, None, stats, estimator="cumulative"
            )
    with pytest.raises(ValueError, match=r"`batch_stats.mean` must have the shape"):
        train(jaxbn.init_batch_stats(3), "ema")
    with pytest.raises(ValueError, match="`batches` must be at least 1, got 0"):
        estimators.window(0)
