"""Recalibration against float64 NumPy."""

import functools

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


@pytest.mark.first_case
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


@pytest.mark.first_case
@pytest.mark.parametrize(
    "make",
    [padded_parts, sharded_parts, lambda: PARTS[::-1], lambda: lambda: iter(PARTS)],
    ids=["padded", "sharded", "in another order", "a function"],
)
def test_other_forms_of_the_same_batches(make):
    layer, variables = layer_and_variables()
    expected = jaxbn.recalibrate(layer, variables, PARTS, train)
    new = jaxbn.recalibrate(layer, variables, make(), train)
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


def recalibrated_deep(pooling):
    """Returns the recalibrated statistics of `Deep`, in float64."""

    def normalized(part):
        return (part - part.mean(0)) / np.sqrt(part.var(0) + 1e-5)

    weights = WEIGHTS.astype(np.float64)
    parts, found = [part.astype(np.float64) for part in PARTS], {}
    found["first"] = population(parts, pooling)
    parts = [np.maximum(normalized(part) + np.sin(part), 0) for part in parts]
    # The frozen layer has mean 0 and variance 1.
    parts = [part / np.sqrt(1 + 1e-5) @ weights[0] for part in parts]
    found["second"] = population(parts, pooling)
    parts = [np.tanh(normalized(part)) @ weights[1] for part in parts]
    # The moments of both calls count.
    parts = [np.concatenate([part, normalized(part) ** 2]) for part in parts]
    return {**found, "twice": population(parts, pooling)}


# `nn.jit` keeps the traces of a class that is wrapped only once.
DEEP = {
    "linen": Deep, "linen, jit": nn.jit(Deep), "linen, remat": nn.remat(Deep),
    "nnx": lambda function: function, "nnx, jit": nnx.jit, "nnx, remat": nnx.remat,
}  # fmt: skip


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("linen", "mean"),
        ("nnx", "mean"),
        *(
            pytest.param(*each, marks=pytest.mark.exhaustive)
            for each in [
                ("linen", "pooled"), ("linen, jit", "mean"), ("linen, remat", "mean"),
                ("nnx", "pooled"), ("nnx, jit", "mean"), ("nnx, remat", "mean"),
            ]
        ),
    ],
)  # fmt: skip
def test_layers_of_a_model(kind, pooling):
    chex.clear_trace_counter()
    # One trace finds the layers. The sums need one for each of the two batch shapes.
    call = chex.assert_max_traces(lambda model, x: model(x), n=3)
    options = {"pooling": pooling}
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
    expected = recalibrated_deep(pooling)
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
    net = Scanned(("batch_stats",))
    variables = net.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"could not be collected.*'batch_moments': 0"):
        jaxbn.recalibrate(net, variables, PARTS, run)
    net = Scanned(("batch_stats", "batch_moments"))
    new = jaxbn.recalibrate(net, variables, PARTS, run)
    inner, last = new["batch_stats"]["scan"]["bn"], new["batch_stats"]["last"]

    def normalized(part):
        return (part - part.mean(0)) / np.sqrt(part.var(0) + 1e-5)

    first = [2 * part.astype(np.float64) for part in PARTS]
    second = [2 * normalized(part) for part in first]
    third = [normalized(part) for part in second]
    scanned = [{name: inner[name][i] for name in inner} for i in range(2)]
    for stats, parts in zip((*scanned, last), (first, second, third), strict=True):
        mean, var = weighted_mean(parts)
        np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(stats["var"], var, rtol=1e-4)


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


def test_errors():
    layer, variables = layer_and_variables()
    model = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    for batches in ([], iter(()), lambda: iter(())):
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
