"""Running statistics that came in half precision go on in float32, with one warning."""

import warnings

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import linen, training

HALF = ("bfloat16", "float16")
MESSAGE = r"running statistics are (bfloat16|float16), in which a moving average sta"


def cast(tree, dtype):
    """Every floating number of a tree in another dtype, as users cast variables."""

    def leaf_cast(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    return jax.tree.map(leaf_cast, tree)


def function(dtype, name, x, steps, momentum):
    options = options_of(name, momentum)
    stats = cast(jaxbn.init_batch_stats(2, estimator=name), dtype)

    def step(stats):
        return jaxbn.batch_norm_train(x, None, None, stats, **options)[1]

    stats = jax.jit(step)(stats)
    stats = jax.lax.fori_loop(1, steps, lambda i, stats: step(stats), stats)
    return {"mean": stats.mean, "var": stats.var, **stats.extra}


def options_of(name, momentum):
    """The options of a layer; only two estimators have a momentum."""
    has_one = name in ("ema", "debiased")
    return {"estimator": name} | ({"momentum": momentum} if has_one else {})


def of_linen(dtype, name, x, steps, momentum):
    layer = linen.BatchNorm(False, **options_of(name, momentum))
    variables = cast(layer.init(jax.random.key(0), x), dtype)

    def step(stats):
        given = variables | {"batch_stats": stats}
        return layer.apply(given, x, mutable=["batch_stats"])[1]["batch_stats"]

    stats = jax.jit(step)(variables["batch_stats"])
    return jax.lax.fori_loop(1, steps, lambda i, stats: step(stats), stats)


def of_nnx(dtype, name, x, steps, momentum):
    layer = jaxbn.nnx.BatchNorm(2, **options_of(name, momentum), rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    state = cast(state, dtype)

    def step(state):
        layer = nnx.merge(graph, state)
        layer(x)
        return nnx.state(layer)

    state = jax.jit(step)(state)
    state = jax.lax.fori_loop(1, steps, lambda i, state: step(state), state)
    return {name: leaf.get_value() for name, leaf in state.items()}


FORMS = {"function": function, "linen": of_linen, "nnx": of_nnx}


@pytest.mark.first_case
@pytest.mark.parametrize("form", FORMS)
@hypothesis.given(
    dtype=st.sampled_from(HALF),
    name=st.sampled_from(["ema", "debiased", "cumulative", "window"]),
    loc=st.sampled_from([2.99, 99.97]),
    momentum=st.sampled_from([0.9, 0.99]),
)
@hypothesis.settings(deadline=None, max_examples=6)
def test_follows_the_batches(form, dtype, name, loc, momentum):
    """After many steps on one batch its own moments are left, and the dtype is wide."""
    rng = np.random.default_rng(0)
    x = (loc + 2 * rng.standard_normal((64, 2))).astype(np.float32)
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        stats = FORMS[form](dtype, name, x, 1000, momentum)
    assert len([each for each in caught if "stalls" in str(each.message)]) == 1
    mean, var = x.astype(np.float64).mean(0), x.astype(np.float64).var(0, ddof=1)
    left = momentum**1000 if name == "ema" else 0  # Of the initial 0 and 1.
    for field in ("mean", "var"):
        assert stats[field].dtype == jnp.float32
    # 1,000 roundings to float32.
    np.testing.assert_allclose(stats["mean"], (1 - left) * mean, rtol=1e-4)
    np.testing.assert_allclose(stats["var"], left + (1 - left) * var, rtol=1e-4)
    state_dtypes = {leaf.dtype for name, leaf in stats.items() if name in STATE}
    assert state_dtypes == {jnp.dtype("float32")}


STATE = ("mean", "var", "weight", "means", "variances")


def test_float64_and_float32_come_back_as_they_are():
    x = np.ones((4, 2), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in ("float32", "float64"):
            with jax.enable_x64(True):
                stats = jaxbn.init_batch_stats(2, dtype)
                _, new = jaxbn.batch_norm_train(x, None, None, stats)
                assert {new.mean.dtype, new.var.dtype} == {jnp.dtype(dtype)}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        for _ in range(3):
            x = linen.BatchNorm(not train)(nn.Dense(4)(x))
        return x


X = (3 + np.random.default_rng(0).standard_normal((8, 4))).astype(np.float32)


def loss_fn(model, batch, train):
    return {"loss": jnp.sum(model(batch["x"], train) ** 2, -1)}


def half_state(dtype="bfloat16"):
    variables = Net().init(jax.random.key(0), X)
    variables["batch_stats"] = cast(variables["batch_stats"], dtype)
    return training.TrainState.create(Net().apply, variables, optax.sgd(0.0))


def half_linen(**options):
    layer = linen.BatchNorm(False, **options)
    return layer, cast(layer.init(jax.random.key(0), X), "bfloat16")


def half_nnx():
    layer = jaxbn.nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    nnx.update(layer, cast(nnx.state(layer), "bfloat16"))
    return layer


def test_one_warning_of_a_model():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        training.make_train_step(loss_fn)(half_state(), {"x": X})
    assert [each.filename for each in caught] == [__file__]


@pytest.mark.first_case
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_train_step_returns_float32(micro_batches):
    step = training.make_train_step(loss_fn, micro_batches=micro_batches)
    with pytest.warns(UserWarning, match=MESSAGE):
        state, _ = step(half_state(), {"x": X})
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state.batch_stats)}
    assert dtypes == {jnp.dtype("float32")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(state, {"x": X})


@pytest.mark.parametrize("dtype", HALF)
def test_a_loop_cannot_carry_it(dtype):
    stats = jaxbn.init_batch_stats(4, dtype)

    def step(stats, _):
        return jaxbn.batch_norm_train(X, None, None, stats)[::-1]

    message = MESSAGE + r".*`lax.scan` cannot return.*Before it, leave.*cast it back"
    with pytest.raises(TypeError, match=message):
        jax.lax.scan(step, stats, length=3)
    steps = training.make_multi_step(loss_fn)
    with pytest.raises(TypeError, match=message):
        steps(half_state(dtype), {"x": np.stack([X, X])})


def test_a_branch_cannot_return_it():
    class Branches(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = linen.BatchNorm(False)
            if self.is_initializing():
                return norm(x)
            branches = [lambda norm, x: norm(x), lambda norm, x: x]
            return nn.switch(jnp.int32(0), branches, norm, x)

    variables = Branches().init(jax.random.key(0), X)
    half = {**variables, "batch_stats": cast(variables["batch_stats"], "bfloat16")}
    with pytest.raises(TypeError, match=MESSAGE + ".*loop or branch"):
        Branches().apply(half, X, mutable=["batch_stats"])
    given = half | {"batch_moments": jaxbn.begin_accumulation(half["batch_stats"])}
    mutable = ["batch_stats", "batch_moments"]
    with pytest.warns(UserWarning, match=MESSAGE):
        _, new = Branches().apply(given, X, mutable=mutable)
    moved = jaxbn.end_accumulation(new["batch_stats"], new["batch_moments"])
    (stats,) = moved.values()
    np.testing.assert_allclose(stats["mean"], 0.01 * X.mean(0), rtol=1e-5)


def test_a_pass_that_writes_nothing_says_nothing():
    layer, variables = half_linen(update_running_average=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = lambda carry, x: (carry, layer.apply(variables, x))  # noqa: E731
        jax.lax.scan(run, 0, np.stack([X, X]))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_recalibrated_statistics_are_wide(kind):
    if kind == "linen":
        layer, variables = half_linen()
        with pytest.warns(UserWarning, match=MESSAGE):
            new = jaxbn.recalibrate(layer, variables, [X], lambda layer, x: layer(x))
        mean = new["batch_stats"]["mean"]
    else:
        layer = half_nnx()
        with pytest.warns(UserWarning, match=MESSAGE):
            new = jaxbn.recalibrate(layer, None, [X], lambda layer, x: layer(x))
        mean = new.mean[...]
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, X.mean(0), rtol=1e-5)


def test_stacked_layers_need_not_carry_it():
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return linen.BatchNorm(False)(x), None

    axes = {"params": 0, "batch_stats": 0}
    net = nn.scan(Cell, variable_axes=axes, split_rngs={"params": True}, length=3)()
    variables = net.init(jax.random.key(0), X, None)
    half = {**variables, "batch_stats": cast(variables["batch_stats"], "bfloat16")}
    with pytest.warns(UserWarning, match=MESSAGE):
        _, new = net.apply(half, X, None, mutable=["batch_stats"])
    _, expected = net.apply(variables, X, None, mutable=["batch_stats"])
    for leaf, other in zip(*map(jax.tree.leaves, (new, expected)), strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_collected_passes(kind):
    if kind == "linen":
        layer, variables = half_linen()
        with pytest.warns(UserWarning, match=MESSAGE):
            _, made = layer.apply(variables, X, mutable=["batch_moments"])
        moments = made["batch_moments"]
        mean = jaxbn.end_accumulation(variables["batch_stats"], moments)["mean"]
    else:
        layer = half_nnx()
        with pytest.warns(UserWarning, match=MESSAGE), jaxbn.accumulate(layer):
            layer(X)
        mean = layer.mean[...]
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, 0.01 * X.mean(0), rtol=1e-5)


def test_an_option_of_flax_keeps_half_precision():
    """`force_float32_reductions=False` asks for it."""
    layer = linen.BatchNorm(
        False, param_dtype=jnp.bfloat16, force_float32_reductions=False
    )
    variables = layer.init(jax.random.key(0), X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, new = layer.apply(variables, X, mutable=["batch_stats"])
    assert new["batch_stats"]["mean"].dtype == jnp.bfloat16
