"""Recalibration against float64 NumPy: all layers together, and one by one."""

import functools
import sys

import chex
import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from jaxbn import linen

RNG = np.random.default_rng(0)
X = (5 + 3 * RNG.standard_normal((40, 3))).astype(np.float32)
PARTS = np.split(X, [16, 32])
WEIGHTS = RNG.standard_normal((2, 3, 3)).astype(np.float32)


def weighted_mean(parts):
    """Returns mean and unbiased variance of parts, weighted by size, in float64."""
    sizes = [len(part) for part in parts]
    parts = [part.astype(np.float64) for part in parts]
    means, variances = zip(*((p.mean(0), p.var(0, ddof=1)) for p in parts), strict=True)
    return np.average(means, 0, sizes), np.average(variances, 0, sizes)


def population(parts, pooling):
    mean, var = weighted_mean(parts)
    if pooling == "pooled":
        var = np.concatenate(parts).astype(np.float64).var(0, ddof=1)
    return {"mean": mean, "var": var}


def layer_and_variables(**options):
    layer = linen.BatchNorm(**options)
    return layer, layer.init(jax.random.key(0), X, use_running_average=True)


def train(model, batch):
    x, mask = batch if isinstance(batch, tuple) else (batch, None)
    return model(x, use_running_average=False, mask=mask)


def run(model, x):
    return model(x)


@pytest.mark.parametrize("estimator", ["ema", "window"])
@pytest.mark.parametrize("pooling", ["mean", "pooled"])
def test_one_layer(pooling, estimator):
    layer, variables = layer_and_variables(estimator=estimator)
    before = jax.tree.map(np.array, variables)
    new = jaxbn.recalibrate(layer, variables, iter(PARTS), train, pooling=pooling)
    stats = {name: new["batch_stats"][name] for name in ("mean", "var")}
    chex.assert_trees_all_close(stats, population(PARTS, pooling), rtol=1e-5)
    chex.assert_trees_all_equal(variables, before)
    chex.assert_trees_all_equal_structs(new, dict(variables))
    assert new["params"] is variables["params"]


def test_evaluation_equals_training_afterwards():
    """The moving averages never saw these data."""
    layer, variables = layer_and_variables()
    new = jaxbn.recalibrate(layer, variables, [X], train)
    given = {"use_running_average": False, "mutable": ["batch_stats"]}
    expected, _ = layer.apply(variables, X, **given)
    before, after = (
        np.abs(layer.apply(v, X, use_running_average=True) - expected).max()
        for v in (variables, new)
    )
    assert before > 3
    assert after < 0.05  # m / (m - 1) of 40 examples.


def padded_parts():
    """The last part has the size of the others, with NaN under the mask."""
    rubbish = np.full((8, 3), np.nan, np.float32)
    masks = [np.ones((16, 1), bool)] * 2 + [np.arange(16)[:, None] < 8]
    return list(zip([*PARTS[:2], np.r_[PARTS[2], rubbish]], masks, strict=True))


def sharded_parts():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    return [jax.device_put(part, jax.NamedSharding(mesh, jax.P("d"))) for part in PARTS]


@pytest.mark.parametrize(
    "make",
    [padded_parts, sharded_parts, lambda: PARTS[::-1], lambda: lambda: iter(PARTS)],
    ids=["padded", "sharded", "in another order", "a function"],
)
def test_other_forms_of_the_same_batches(make):
    layer, variables = layer_and_variables()
    expected = jaxbn.recalibrate(layer, variables, PARTS, train)
    new = jaxbn.recalibrate(layer, variables, make(), train, layer_by_layer=True)
    chex.assert_trees_all_close(new, expected, rtol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "pooled"])
def test_a_batch_may_not_count_for_a_channel(pooling):
    """The second batch is broken in one channel, masked in one, one value in one."""
    broken, mask = PARTS[1].copy(), np.ones((16, 3), bool)
    broken[0, 0] = np.inf
    mask[:, 1] = False
    mask[1:, 2] = False
    whole = np.ones((16, 3), bool), np.ones((8, 3), bool)
    batches = [(PARTS[0], whole[0]), (broken, mask), (PARTS[2], whole[1])]
    layer, variables = layer_and_variables()
    new = jaxbn.recalibrate(layer, variables, batches, train, pooling=pooling)
    parts = [PARTS[0], PARTS[2]]
    expected = population(parts, pooling)
    if pooling == "pooled":  # A single value has no variance, but belongs to the data.
        every = np.concatenate([*parts, PARTS[1][:1]])[:, 2].astype(np.float64)
        expected["mean"][2], expected["var"][2] = every.mean(), every.var(ddof=1)
    chex.assert_trees_all_close(new["batch_stats"], expected, rtol=1e-5)
    stats = jaxbn.recalibrate(layer, variables, [broken], train)["batch_stats"]
    assert (stats["mean"][0], stats["var"][0]) == (0, 1)  # It keeps what it had.
    np.testing.assert_allclose(stats["mean"][1:], broken.mean(0)[1:], rtol=1e-5)


def test_statistics_of_averaged_weights():
    """They belong to the given parameters, whatever parameters trained before."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return linen.BatchNorm(False, name="bn")(nn.Dense(3, name="dense")(x))

    one, other = (Net().init(jax.random.key(i), X) for i in range(2))
    average = jax.tree.map(lambda a, b: (a + b) / 2, one["params"], other["params"])
    given = flax.core.freeze({**one, "params": average, "other": {"kept": np.ones(3)}})
    new = jaxbn.recalibrate(Net(), given, PARTS, run)
    assert isinstance(new, flax.core.FrozenDict)
    assert new["other"]["kept"] is given["other"]["kept"]
    kernel, bias = (np.float64(average["dense"][name]) for name in ("kernel", "bias"))
    expected = population([part @ kernel + bias for part in PARTS], "mean")
    chex.assert_trees_all_close(dict(new["batch_stats"]["bn"]), expected, rtol=1e-5)


def test_moments_that_were_given_do_not_count():
    layer, variables = layer_and_variables()
    given = {"use_running_average": False, "mutable": ["batch_moments"]}
    _, moments = layer.apply(variables, 5 * X, **given)
    new = jaxbn.recalibrate(layer, {**variables, **moments}, PARTS, train)
    expected = jaxbn.recalibrate(layer, variables, PARTS, train)
    chex.assert_trees_all_equal(new["batch_stats"], expected["batch_stats"])


class Deep(nn.Module):
    """A network whose last layer is called twice and made first; another is frozen."""

    @nn.compact
    def __call__(self, x):
        twice = linen.BatchNorm(False, name="twice", momentum=0.5)
        first = linen.BatchNorm(name="first", activation="relu")
        x = first(x, False, residual=jnp.sin(x))
        self.variable("cache", "seen", lambda: jnp.zeros(())).value += 1
        x = linen.BatchNorm(True, update_running_average=False, name="frozen")(x)
        x = linen.BatchNorm(False, name="second", estimator="debiased")(x @ WEIGHTS[0])
        x = twice(twice(jnp.tanh(x) @ WEIGHTS[1]) ** 2)
        return nn.Dropout(0.5, deterministic=False)(x)


class DeepModel(nnx.Module):
    """`Deep` as an NNX model."""

    def __init__(self, transform):
        make = functools.partial(jaxbn.nnx.BatchNorm, 3, rngs=nnx.Rngs(0))
        self.twice, self.first = make(momentum=0.5), make(activation="relu")
        self.frozen = make(update_running_average=False)
        self.second = make(estimator="debiased")
        self.transform = transform

    def __call__(self, x):
        return self.transform(DeepModel.run)(self, x)

    def run(self, x):
        x = self.first(x, residual=jnp.sin(x))
        x = self.frozen(x, use_running_average=True)
        x = self.second(x @ WEIGHTS[0])
        return self.twice(self.twice(jnp.tanh(x) @ WEIGHTS[1]) ** 2)


def recalibrated_deep(pooling, layer_by_layer):
    """Returns the recalibrated statistics of `Deep`, in float64."""

    def normalized(part, stats=None):
        stats = stats or {"mean": part.mean(0), "var": part.var(0)}
        return (part - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)

    weights = WEIGHTS.astype(np.float64)
    parts, found = [part.astype(np.float64) for part in PARTS], {}
    found["first"] = population(parts, pooling)
    stats = found["first"] if layer_by_layer else None
    parts = [np.maximum(normalized(part, stats) + np.sin(part), 0) for part in parts]
    # The frozen layer has mean 0 and variance 1.
    parts = [part / np.sqrt(1 + 1e-5) @ weights[0] for part in parts]
    found["second"] = population(parts, pooling)
    stats = found["second"] if layer_by_layer else None
    parts = [np.tanh(normalized(part, stats)) @ weights[1] for part in parts]
    # A layer is recalibrated in one pass, in which it normalises by the batch.
    parts = [np.concatenate([part, normalized(part) ** 2]) for part in parts]
    return {**found, "twice": population(parts, pooling)}


# `nn.jit` keeps the traces of a class that is wrapped only once.
DEEP = {
    "linen": Deep, "linen, jit": nn.jit(Deep), "linen, remat": nn.remat(Deep),
    "nnx": lambda function: function, "nnx, jit": nnx.jit, "nnx, remat": nnx.remat,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "pooling", "layer_by_layer"),
    [
        ("linen", "mean", True),
        ("nnx", "mean", True),
        *(
            pytest.param(*each, marks=pytest.mark.exhaustive)
            for each in [
                ("linen", "pooled", True), ("linen", "mean", False),
                ("linen, jit", "mean", True),
                ("nnx", "pooled", False), ("nnx, jit", "mean", True),
                ("nnx, remat", "mean", True), ("linen, remat", "mean", True),
            ]
        ),
    ],
)  # fmt: skip
def test_layers_of_a_model(kind, pooling, layer_by_layer):
    chex.clear_trace_counter()
    # One trace finds the layers, and layer by layer another one finds their order. The
    # sums need a trace for each of the two batch shapes.
    traces = 4 if layer_by_layer else 3
    call = chex.assert_max_traces(lambda model, x: model(x), n=traces)
    options = {"pooling": pooling, "layer_by_layer": layer_by_layer}
    if kind.startswith("linen"):
        net, rngs = DEEP[kind](), {"dropout": jax.random.key(1)}
        variables = net.init({"params": jax.random.key(0), **rngs}, X)
        before = jax.tree.map(np.array, variables)
        new = jaxbn.recalibrate(net, variables, PARTS, call, rngs=rngs, **options)
        chex.assert_trees_all_equal(variables, before)
        chex.assert_trees_all_equal_structs(new, dict(variables))
        assert new["params"] is variables["params"]
        assert new["cache"] is variables["cache"]
        stats, old = dict(new["batch_stats"]), dict(variables["batch_stats"])
    else:
        model = DeepModel(DEEP[kind])
        model.eval()
        before = nnx.clone(nnx.state(model))
        new = jaxbn.recalibrate(model, None, PARTS, call, **options)
        chex.assert_trees_all_equal(nnx.state(model), before)
        # The layers have the same modes, attributes and classes as before.
        assert nnx.graphdef(new) == nnx.graphdef(model)
        stats, old = (
            nnx.to_pure_dict(nnx.state(each, nnx.BatchStat)) for each in (new, model)
        )
    chex.assert_trees_all_equal(stats.pop("frozen"), old.pop("frozen"))
    second = dict(stats["second"])
    chex.assert_trees_all_equal(second.pop("weight"), old["second"]["weight"])
    stats["second"] = second
    expected = recalibrated_deep(pooling, layer_by_layer)
    # Float32 rounding through four layers.
    chex.assert_trees_all_close(stats, expected, rtol=1e-4, atol=1e-5)


class Scanned(nn.Module):
    axes: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return linen.BatchNorm(False, name="bn")(2 * x), None

        axes = dict.fromkeys(("params", *self.axes), 0)
        scan = nn.scan(Block, axes, split_rngs={"params": True}, length=2)
        return linen.BatchNorm(False, name="last")(scan(name="scan")(x, None)[0])


@pytest.mark.exhaustive
def test_layers_of_a_scan():
    """All layers of one scan are recalibrated in one pass."""
    net = Scanned(("batch_stats",))
    variables = net.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"could not be collected.*'batch_moments': 0"):
        jaxbn.recalibrate(net, variables, PARTS, run)
    net = Scanned(("batch_stats", "batch_moments"))
    new = jaxbn.recalibrate(net, variables, PARTS, run, layer_by_layer=True)
    inner, last = new["batch_stats"]["scan"]["bn"], new["batch_stats"]["last"]

    def normalized(part, mean, var):
        return (part - mean) / np.sqrt(var + 1e-5)

    doubled = [2 * part.astype(np.float64) for part in PARTS]
    own = [2 * normalized(part, part.mean(0), part.var(0)) for part in doubled]
    for i, parts in enumerate((doubled, own)):
        mean, var = weighted_mean(parts)
        np.testing.assert_allclose(inner["mean"][i], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(inner["var"][i], var, rtol=1e-5)
    # In the pass of the last layer, both layers of the scan are in evaluation.
    known = [[np.float64(inner[n][i]) for n in ("mean", "var")] for i in range(2)]
    parts = [normalized(2 * normalized(p, *known[0]), *known[1]) for p in doubled]
    mean, var = weighted_mean(parts)
    np.testing.assert_allclose(last["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(last["var"], var, rtol=1e-4)


def test_layers_of_flax_raise():
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return linen.BatchNorm(False)(nn.BatchNorm(False, name="theirs")(x))

    variables = Mixed().init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"layer 'theirs' could not be collected"):
        jaxbn.recalibrate(Mixed(), variables, PARTS, run)
    rngs = nnx.Rngs(0)
    kinds = jaxbn.nnx.BatchNorm, nnx.BatchNorm
    model = nnx.Sequential(*(kind(3, rngs=rngs) for kind in kinds))
    with pytest.raises(ValueError, match=r"\['layers/1'\] could not be collected"):
        jaxbn.recalibrate(model, None, PARTS, run)


@pytest.mark.parametrize(
    ("batches", "layer_by_layer", "text"),
    [(PARTS, True, "6/6"), (lambda: iter(PARTS), False, "3batch")],
)
def test_progress(batches, layer_by_layer, text, capsys):
    net = nn.Sequential([linen.BatchNorm(False), linen.BatchNorm(False)])
    variables = net.init(jax.random.key(0), X)
    options = {"layer_by_layer": layer_by_layer, "progress": True}
    jaxbn.recalibrate(net, variables, batches, run, **options)
    found = capsys.readouterr().err
    assert "recalibrate" in found
    assert text in found


def test_progress_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    layer, variables = layer_and_variables()
    with pytest.raises(ModuleNotFoundError, match="tqdm"):
        jaxbn.recalibrate(layer, variables, PARTS, train, progress=True)


def test_errors():
    layer, variables = layer_and_variables()
    model = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    for batches in ([], iter(())):
        with pytest.raises(ValueError, match="`batches` must hold at least one batch"):
            jaxbn.recalibrate(layer, variables, batches, train)
    with pytest.raises(ValueError, match=r"`pooling` must be one of .* got 'median'"):
        jaxbn.recalibrate(layer, variables, PARTS, train, pooling="median")
    for each, given in ((layer, None), (model, variables)):
        with pytest.raises(ValueError, match="`variables` must be all that"):
            jaxbn.recalibrate(each, given, PARTS, train)
    evaluate = lambda model, x: model(x, use_running_average=True)  # noqa: E731
    for each, given, call in (
        (model, None, lambda model, x: x),
        (layer, variables, evaluate),
    ):
        with pytest.raises(ValueError, match=r"`call` must run .* in training mode"):
            jaxbn.recalibrate(each, given, PARTS, call)
    with pytest.raises(TypeError, match=r"got one dict; give `\[batch\]`"):
        jaxbn.recalibrate(layer, {}, {"x": X}, train)


def test_batches_that_cannot_be_read_again():
    net = nn.Sequential([linen.BatchNorm(False), linen.BatchNorm(False)])
    variables = net.init(jax.random.key(0), X)
    for batches in (iter(PARTS), (part for part in PARTS)):
        with pytest.raises(TypeError, match=r"`batches` must be read once per layer"):
            jaxbn.recalibrate(net, variables, batches, run, layer_by_layer=True)
    used = iter(PARTS)
    with pytest.raises(ValueError, match="`batches` must hold at least one batch"):
        jaxbn.recalibrate(net, variables, lambda: used, run, layer_by_layer=True)
