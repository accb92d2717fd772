"""Recalibration against float64 NumPy: all layers together, and one by one."""

import functools
import sys

import chex
import flax.core
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
from jaxbn import linen

RNG = np.random.default_rng(0)
X = (5 + 3 * RNG.standard_normal((40, 3))).astype(np.float32)
SIZES = (16, 16, 8)
PARTS = np.split(X, np.cumsum(SIZES)[:-1])


def weighted_mean(parts):
    """Returns mean and unbiased variance of parts, weighted by size, in float64."""
    sizes = np.array([len(part) for part in parts], float)[:, None]
    parts = [part.astype(np.float64) for part in parts]
    mean = np.stack([part.mean(0) for part in parts])
    var = np.stack([part.var(0, ddof=1) for part in parts])
    return (sizes * mean).sum(0) / sizes.sum(), (sizes * var).sum(0) / sizes.sum()


def layer_and_variables(**options):
    layer = linen.BatchNorm(**options)
    return layer, layer.init(jax.random.key(0), X, use_running_average=True)


def train(model, x):
    return model(x, use_running_average=False)


@pytest.mark.parametrize("estimator", ["ema", "debiased", "window"])
@pytest.mark.parametrize("pooling", ["mean", "pooled"])
def test_of_one_layer(pooling, estimator):
    layer, variables = layer_and_variables(estimator=estimator)
    before = jax.tree.map(np.array, variables)
    new = jaxbn.recalibrate(layer, variables, iter(PARTS), train, pooling=pooling)
    mean, var = weighted_mean(PARTS)
    if pooling == "pooled":
        var = X.astype(np.float64).var(0, ddof=1)
    np.testing.assert_allclose(new["batch_stats"]["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], var, rtol=1e-5)
    chex.assert_trees_all_equal(variables, before)
    chex.assert_trees_all_equal_structs(new, dict(variables))
    assert new["params"] is variables["params"]


class Net(nn.Module):
    """A network with a layer used twice, a frozen layer and other collections."""

    @nn.compact
    def __call__(self, x, train=True):
        running_average = not train
        twice = linen.BatchNorm(name="twice")
        x = twice(x, use_running_average=running_average)
        x = twice(3 * x**2, use_running_average=running_average)
        self.variable("cache", "seen", lambda: jnp.zeros(())).value += 1
        x = nn.Dropout(0.5, deterministic=not train)(x)
        frozen = linen.BatchNorm(True, update_running_average=False, name="frozen")
        x = frozen(x)
        return linen.BatchNorm(name="last")(x, use_running_average=running_average)


def test_of_a_model():
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = Net().init(keys, X)
    call = lambda model, batch: model(batch["x"], train=True)  # noqa: E731
    batches = [{"x": part} for part in PARTS]
    rngs = {"dropout": jax.random.key(2)}
    new = jaxbn.recalibrate(Net(), variables, batches, call, rngs=rngs)
    stats, old = new["batch_stats"], variables["batch_stats"]
    chex.assert_trees_all_equal(stats["frozen"], old["frozen"])
    assert float(new["cache"]["seen"]) == float(variables["cache"]["seen"])
    assert np.all(stats["last"]["var"] != old["last"]["var"])
    # A batch of the layer that is used twice consists of both its inputs.
    parts = []
    for part in PARTS:
        x_hat = (part - part.mean(0)) / np.sqrt(part.var(0) + 1e-5)
        parts.append(np.concatenate([part, 3 * x_hat**2]))
    mean, var = weighted_mean(parts)
    np.testing.assert_allclose(stats["twice"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["twice"]["var"], var, rtol=1e-4)


def test_evaluation_is_that_of_training_afterwards():
    """Recalibration is for moving averages that never saw these data."""
    layer, variables = layer_and_variables()
    expected, _ = layer.apply(
        variables, X, use_running_average=False, mutable=["batch_stats"]
    )
    new = jaxbn.recalibrate(layer, variables, [X], train)
    before, after = (
        np.abs(layer.apply(v, X, use_running_average=True) - expected).max()
        for v in (variables, new)
    )
    assert before > 3
    assert after < 0.05  # m / (m - 1) of 40 examples.


def test_padding_counts_nothing():
    layer, variables = layer_and_variables()
    padded = np.concatenate([PARTS[2], np.full((8, 3), np.nan, np.float32)])
    mask = np.arange(16)[:, None] < 8
    batches = [(part, np.ones((16, 1), bool)) for part in PARTS[:2]] + [(padded, mask)]

    def call(model, batch):
        x, mask = batch
        return model(x, use_running_average=False, mask=mask)

    new = jaxbn.recalibrate(layer, variables, batches, call)
    expected = jaxbn.recalibrate(layer, variables, PARTS, train)
    chex.assert_trees_all_close(new, expected, rtol=1e-6)


def test_sharded_batches():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("d"))
    layer, variables = layer_and_variables()
    expected = jaxbn.recalibrate(layer, variables, PARTS, train)
    new = jaxbn.recalibrate(
        layer, variables, [jax.device_put(part, sharding) for part in PARTS], train
    )
    chex.assert_trees_all_close(new, expected, rtol=1e-6)


def test_compiled_once_per_shape():
    chex.clear_trace_counter()
    call = chex.assert_max_traces(train, n=3)  # The first batch, the others, the last.
    layer, variables = layer_and_variables()
    jaxbn.recalibrate(layer, variables, PARTS + PARTS[:2], call)


@pytest.mark.exhaustive
@hypothesis.given(
    st.permutations(range(3)), st.integers(1, 15), st.sampled_from(["mean", "pooled"])
)
@hypothesis.settings(deadline=None, max_examples=10)
def test_order_does_not_matter_and_pooling_not_where_one_cuts(order, cut, pooling):
    layer, variables = layer_and_variables()
    recalibrated = lambda parts: jaxbn.recalibrate(  # noqa: E731
        layer, variables, parts, train, pooling=pooling
    )["batch_stats"]
    expected = recalibrated(PARTS)
    shuffled = recalibrated([PARTS[i] for i in order])
    chex.assert_trees_all_close(shuffled, expected, rtol=1e-5)
    if pooling == "pooled" and cut > 1:
        other = recalibrated([X[:cut], X[cut:]])
        chex.assert_trees_all_close(other, expected, rtol=1e-5)


def test_frozen_variables_and_weights_of_an_average():
    layer, variables = layer_and_variables()
    averaged = flax.core.freeze({**variables, "params": {"scale": 2 * jnp.ones(3), "bias": jnp.zeros(3)}})  # fmt: skip # noqa: E501
    new = jaxbn.recalibrate(layer, averaged, PARTS, train)
    expected = jaxbn.recalibrate(layer, variables, PARTS, train)
    chex.assert_trees_all_equal(dict(new["batch_stats"]), expected["batch_stats"])
    np.testing.assert_array_equal(new["params"]["scale"], 2)


def test_channel_without_two_values_keeps_what_it_has():
    layer, variables = layer_and_variables()
    mask = np.ones(X.shape, bool)
    mask[1:, 0] = False
    call = lambda model, x: model(x, use_running_average=False, mask=mask)  # noqa: E731
    stats = jaxbn.recalibrate(layer, variables, [X], call)["batch_stats"]
    assert float(stats["mean"][0]) == 0
    assert float(stats["var"][0]) == 1
    np.testing.assert_allclose(stats["mean"][1:], X.mean(0)[1:], rtol=1e-6)


class Model(nnx.Module):
    """`Net` without its other collections."""

    def __init__(self):
        make = functools.partial(jaxbn.nnx.BatchNorm, 3, rngs=nnx.Rngs(0))
        self.twice, self.last = make(), make(estimator="debiased")
        self.frozen = make(use_running_average=True, update_running_average=False)

    def __call__(self, x):
        x = self.twice(3 * self.twice(x) ** 2)
        return self.last(self.frozen(x, use_running_average=True))


@pytest.mark.parametrize(
    "pooling", ["mean", pytest.param("pooled", marks=pytest.mark.exhaustive)]
)
def test_of_an_nnx_model(pooling):
    model = Model()
    model.eval()
    before = nnx.clone(nnx.state(model))
    call = lambda model, batch: model(batch["x"])  # noqa: E731
    batches = [{"x": part} for part in PARTS]
    new = jaxbn.recalibrate(model, None, batches, call, pooling=pooling)
    chex.assert_trees_all_equal(nnx.state(model), before)
    chex.assert_trees_all_equal_structs(nnx.state(new), before)
    assert new.last.use_running_average is True
    chex.assert_trees_all_equal(nnx.state(new.frozen), nnx.state(model.frozen))

    class Same(nn.Module):
        @nn.compact
        def __call__(self, x):
            twice = linen.BatchNorm(False, name="twice")
            x = linen.BatchNorm(True, name="frozen")(twice(3 * twice(x) ** 2))
            return linen.BatchNorm(False, name="last")(x)

    variables = Same().init(jax.random.key(0), X)
    linen_call = lambda model, batch: model(batch["x"])  # noqa: E731
    expected = jaxbn.recalibrate(
        Same(), variables, batches, linen_call, pooling=pooling
    )["batch_stats"]
    for name in ("twice", "last"):
        norm = getattr(new, name)
        np.testing.assert_allclose(norm.mean[...], expected[name]["mean"], rtol=1e-5, atol=1e-6)  # fmt: skip # noqa: E501
        np.testing.assert_allclose(norm.var[...], expected[name]["var"], rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "pooled"])
def test_a_batch_that_is_not_finite_is_left_out_by_channel(pooling):
    layer, variables = layer_and_variables()
    broken = PARTS[1].copy()
    broken[3, 0] = np.nan
    parts = [PARTS[0], broken, PARTS[2]]
    stats = jaxbn.recalibrate(layer, variables, parts, train, pooling=pooling)
    without = jaxbn.recalibrate(layer, variables, parts[::2], train, pooling=pooling)
    whole = jaxbn.recalibrate(layer, variables, PARTS, train, pooling=pooling)
    for name in ("mean", "var"):
        expected = np.array(whole["batch_stats"][name])
        expected[0] = without["batch_stats"][name][0]
        np.testing.assert_allclose(stats["batch_stats"][name], expected, rtol=1e-5)


class Scanned(nn.Module):
    axes: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return linen.BatchNorm(False)(2 * x), None

        axes = dict.fromkeys(("params", *self.axes), 0)
        scan = nn.scan(Block, axes, split_rngs={"params": True}, length=2)
        return linen.BatchNorm(False)(scan()(x, None)[0])


@pytest.mark.exhaustive
def test_layers_of_a_scan_are_told_or_collected():
    call = lambda model, x: model(x)  # noqa: E731
    net = Scanned(("batch_stats",))
    variables = net.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"could not be collected.*'batch_moments': 0"):
        jaxbn.recalibrate(net, variables, PARTS, call)
    net = Scanned(("batch_stats", "batch_moments"))
    stats = jaxbn.recalibrate(net, variables, PARTS, call)["batch_stats"]
    (inner,) = (value for name, value in stats.items() if name != "BatchNorm_0")
    mean, var = weighted_mean([2 * part for part in PARTS])
    np.testing.assert_allclose(inner["BatchNorm_0"]["mean"][0], mean, rtol=1e-5)
    np.testing.assert_allclose(inner["BatchNorm_0"]["var"][0], var, rtol=1e-5)


def test_layers_of_flax_are_told():
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return linen.BatchNorm(False)(nn.BatchNorm(False, name="theirs")(x))

    variables = Mixed().init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"layer 'theirs' could not be collected"):
        jaxbn.recalibrate(Mixed(), variables, PARTS, lambda model, x: model(x))


WEIGHTS = RNG.standard_normal((2, 3, 3)).astype(np.float32)


class Deep(nn.Module):
    """A network whose last layer is called twice and made first; another is frozen."""

    @nn.compact
    def __call__(self, x, use_running_average=False):
        average = {"use_running_average": use_running_average}
        twice = linen.BatchNorm(name="twice", momentum=0.5)
        x = linen.BatchNorm(name="first", activation="relu")(x, **average)
        self.variable("cache", "seen", lambda: jnp.zeros(())).value += 1
        x = linen.BatchNorm(True, update_running_average=False, name="frozen")(x)
        x = linen.BatchNorm(name="second", estimator="debiased")(
            x @ WEIGHTS[0], **average
        )
        x = twice(jnp.tanh(x) @ WEIGHTS[1], **average)
        return twice(x**2, **average)


class DeepModel(nnx.Module):
    """`Deep` as an NNX model."""

    def __init__(self):
        make = functools.partial(jaxbn.nnx.BatchNorm, 3, rngs=nnx.Rngs(0))
        self.twice, self.first = make(momentum=0.5), make(activation="relu")
        self.frozen = make(update_running_average=False)
        self.second = make(estimator="debiased")

    def __call__(self, x):
        x = self.frozen(self.first(x), use_running_average=True)
        x = self.second(x @ WEIGHTS[0])
        x = self.twice(jnp.tanh(x) @ WEIGHTS[1])
        return self.twice(x**2)


def reference(pooling, layer_by_layer):
    """Returns the recalibrated statistics of `Deep`, in float64."""

    def population(parts):
        mean, var = weighted_mean(parts)
        if pooling == "pooled":
            var = np.concatenate(parts).astype(np.float64).var(0, ddof=1)
        return {"mean": mean, "var": var}

    def normalized(part, stats=None):
        stats = stats or {"mean": part.mean(0), "var": part.var(0)}
        return (part - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)

    found = {}
    parts = [part.astype(np.float64) for part in PARTS]
    found["first"] = population(parts)
    stats = found["first"] if layer_by_layer else None
    parts = [np.maximum(normalized(part, stats), 0) for part in parts]
    # The frozen layer has mean 0 and variance 1.
    parts = [part / np.sqrt(1 + 1e-5) @ WEIGHTS[0].astype(np.float64) for part in parts]
    found["second"] = population(parts)
    stats = found["second"] if layer_by_layer else None
    parts = [
        np.tanh(normalized(p, stats)) @ WEIGHTS[1].astype(np.float64) for p in parts
    ]
    # This layer is recalibrated in one pass, in which it normalises by the batch.
    found["twice"] = population(
        [np.concatenate([p, normalized(p) ** 2]) for p in parts]
    )
    return found


@pytest.mark.parametrize("kind", ["linen", "nnx"])
@pytest.mark.parametrize(
    "layer_by_layer", [pytest.param(False, marks=pytest.mark.exhaustive), True]
)
@pytest.mark.parametrize(
    "pooling", ["mean", pytest.param("pooled", marks=pytest.mark.exhaustive)]
)
def test_of_layers_in_turn(pooling, layer_by_layer, kind):
    chex.clear_trace_counter()
    # One trace finds the layers, and layer by layer another one their order. The
    # sums need a trace for each of the two batch shapes.
    traces = 4 if layer_by_layer else 3
    call = chex.assert_max_traces(lambda model, x: model(x), n=traces)
    options = {"pooling": pooling, "layer_by_layer": layer_by_layer}
    expected = reference(pooling, layer_by_layer)
    if kind == "linen":
        variables = Deep().init(jax.random.key(0), X)
        before = jax.tree.map(np.array, variables)
        new = jaxbn.recalibrate(Deep(), variables, PARTS, call, **options)
        chex.assert_trees_all_equal(variables, before)
        chex.assert_trees_all_equal_structs(new, dict(variables))
        assert new["params"] is variables["params"]
        assert new["cache"] is variables["cache"]
        stats = dict(new["batch_stats"])
        old = dict(variables["batch_stats"])
    else:
        model = DeepModel()
        model.eval()
        before = nnx.clone(nnx.state(model))
        new = jaxbn.recalibrate(model, None, PARTS, call, **options)
        chex.assert_trees_all_equal(nnx.state(model), before)
        graphs = [nnx.graphdef(each) for each in (new, model)]
        assert graphs[0] == graphs[1]  # No attribute or class more, and its modes.
        stats, old = (
            nnx.to_pure_dict(nnx.state(each, nnx.BatchStat)) for each in (new, model)
        )
    chex.assert_trees_all_equal(stats.pop("frozen"), old.pop("frozen"))
    second = stats["second"].pop("weight"), old["second"].pop("weight")
    chex.assert_trees_all_equal(*second)
    chex.assert_trees_all_close(stats, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.exhaustive
def test_evaluation_sees_what_the_last_layer_was_given():
    """Layer by layer, the mean is that of the layer's inputs in evaluation.

    Evaluation has all data in one batch.
    """
    variables = Deep().init(jax.random.key(0), X)
    call = lambda model, x: model(x)  # noqa: E731
    moved = {}
    for layer_by_layer in (False, True):
        new = jaxbn.recalibrate(
            Deep(), variables, PARTS, call, layer_by_layer=layer_by_layer,
            pooling="pooled",
        )  # fmt: skip
        given = {}

        def note(next_function, args, kwargs, context, given=given):
            if context.module.name == "second":
                given["x"] = np.asarray(args[0], np.float64)
            return next_function(*args, **kwargs)

        with nn.intercept_methods(note):
            Deep().apply(new, X, True, mutable=["cache"])
        stats = new["batch_stats"]["second"]
        moved[layer_by_layer] = np.abs(stats["mean"] - given["x"].mean(0)).max()
    assert moved[True] < 1e-5
    assert moved[False] > 1e-3


@pytest.mark.exhaustive
def test_layers_of_a_scan_are_taken_together():
    net = Scanned(("batch_stats", "batch_moments"))
    variables = net.init(jax.random.key(0), X)
    new = jaxbn.recalibrate(
        net, variables, PARTS, lambda model, x: model(x), layer_by_layer=True
    )
    stats = dict(new["batch_stats"])
    last = stats.pop("BatchNorm_0")
    (inner,) = (value["BatchNorm_0"] for value in stats.values())

    def normalized(parts, stats):
        mean, var = stats
        return [(part - mean) / np.sqrt(var + 1e-5) for part in parts]

    doubled = [2 * part.astype(np.float64) for part in PARTS]
    own = [normalized([part], (part.mean(0), part.var(0)))[0] for part in doubled]
    for i, parts in enumerate((doubled, [2 * part for part in own])):
        mean, var = weighted_mean(parts)
        np.testing.assert_allclose(inner["mean"][i], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(inner["var"][i], var, rtol=1e-5)
    # After the scan both of its layers are evaluated.
    parts = doubled
    for i in range(2):
        known = [np.asarray(inner[name][i], np.float64) for name in ("mean", "var")]
        parts = normalized(parts if i == 0 else [2 * part for part in parts], known)
    mean, var = weighted_mean(parts)
    np.testing.assert_allclose(last["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(last["var"], var, rtol=1e-4)


def test_batches_from_a_function():
    layer, variables = layer_and_variables()
    expected = jaxbn.recalibrate(layer, variables, PARTS, train)
    new = jaxbn.recalibrate(
        layer, variables, lambda: iter(PARTS), train, layer_by_layer=True
    )
    chex.assert_trees_all_equal(new, expected)  # There is one layer.


def test_batches_that_cannot_be_read_again():
    variables = Deep().init(jax.random.key(0), X)
    call = lambda model, x: model(x)  # noqa: E731
    for batches in (iter(PARTS), (part for part in PARTS)):
        with pytest.raises(TypeError, match=r"`batches` must be read once per layer"):
            jaxbn.recalibrate(Deep(), variables, batches, call, layer_by_layer=True)
    used = iter(PARTS)
    with pytest.raises(ValueError, match="`batches` must hold at least one batch"):
        jaxbn.recalibrate(Deep(), variables, lambda: used, call, layer_by_layer=True)


@pytest.mark.parametrize(
    ("batches", "layer_by_layer", "said"),
    [
        (PARTS, True, "6/6"),
        (lambda: iter(PARTS), False, "3batch"),
        pytest.param(PARTS, False, "3/3", marks=pytest.mark.exhaustive),
        pytest.param(lambda: iter(PARTS), True, "6/6", marks=pytest.mark.exhaustive),
    ],
)
def test_progress(batches, layer_by_layer, said, capsys):
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return linen.BatchNorm(False)(linen.BatchNorm(False)(x))

    variables = Two().init(jax.random.key(0), X)
    options = {"layer_by_layer": layer_by_layer, "progress": True}
    jaxbn.recalibrate(Two(), variables, batches, lambda model, x: model(x), **options)
    found = capsys.readouterr().err
    assert "recalibrate" in found
    assert said in found


def test_progress_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    layer, variables = layer_and_variables()
    with pytest.raises(
        ModuleNotFoundError, match=r"`progress=True` needs tqdm.*pip inst"
    ):
        jaxbn.recalibrate(layer, variables, PARTS, train, progress=True)


class Regression(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average=False):
        x = linen.BatchNorm()(nn.Dense(3)(x), use_running_average)
        self.sow("counts", "calls", jnp.ones(()))
        return nn.Dense(1)(x)[:, 0]


@pytest.mark.parametrize(
    "average", ["ema", pytest.param("swa", marks=pytest.mark.exhaustive)]
)
def test_averaged_weights(average):
    """Their statistics are none of any step: they are those of the averaged network."""
    net, tx = Regression(), optax.sgd(0.3)
    variables = net.init(jax.random.key(0), X)
    others = {"losses": {"kept": jnp.arange(3)}, "counts": variables["counts"]}
    params, stats, averaged = variables["params"], variables["batch_stats"], None
    opt_state = tx.init(params)

    @jax.jit
    def step(params, stats, opt_state):
        def loss(params):
            given = {"params": params, "batch_stats": stats}
            y, new = net.apply(given, X, mutable=["batch_stats"])
            return jnp.mean((y - jnp.sin(X[:, 0])) ** 2), new["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), stats, opt_state

    for i in range(6):
        params, stats, opt_state = step(params, stats, opt_state)
        size = 0.2 if average == "ema" else 1 / (i + 1)
        averaged = (
            params if i == 0 else optax.incremental_update(params, averaged, size)
        )
    given = {"params": averaged, "batch_stats": stats, **others}
    before = jax.tree.map(np.array, given)
    new = jaxbn.recalibrate(net, given, PARTS, lambda model, x: model(x))
    chex.assert_trees_all_equal(given, before)
    chex.assert_trees_all_equal({k: new[k] for k in others}, others)
    assert new["params"] is averaged
    dense = jax.tree.map(lambda leaf: np.asarray(leaf, float), averaged["Dense_0"])
    mean, var = weighted_mean(
        [part @ dense["kernel"] + dense["bias"] for part in PARTS]
    )
    found = new["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(found["var"], var, rtol=1e-5)
    assert np.all(np.abs(stats["BatchNorm_0"]["mean"] - mean) > 0.1)


def test_nnx_layers_of_flax_are_told():
    class Mixed(nnx.Module):
        def __init__(self):
            self.ours = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
            self.theirs = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.theirs(self.ours(x))

    with pytest.raises(ValueError, match=r"\['theirs'\] could not be collected"):
        jaxbn.recalibrate(Mixed(), None, PARTS, lambda model, x: model(x))


def test_errors():
    layer, variables = layer_and_variables()
    with pytest.raises(ValueError, match="`batches` must hold at least one batch"):
        jaxbn.recalibrate(layer, variables, [], train)
    with pytest.raises(ValueError, match=r"`pooling` must be one of .* got 'median'"):
        jaxbn.recalibrate(layer, variables, PARTS, train, pooling="median")
    for model, given in ((layer, None), (Model(), variables)):
        with pytest.raises(ValueError, match="`variables` must be all that"):
            jaxbn.recalibrate(model, given, PARTS, train)
    with pytest.raises(ValueError, match=r"`call` must run .* in training mode"):
        jaxbn.recalibrate(Model(), None, PARTS, lambda model, x: x)
    evaluate = lambda model, x: model(x, use_running_average=True)  # noqa: E731
    with pytest.raises(ValueError, match=r"`call` must run .* in training mode"):
        jaxbn.recalibrate(layer, variables, PARTS, evaluate)


def test_one_batch_is_not_several():
    with pytest.raises(TypeError, match=r"got one dict; give `\[batch\]`"):
        jaxbn.recalibrate(
            linen.BatchNorm(), {}, {"x": jnp.ones((2, 3))}, lambda model, batch: None
        )
