"""Layers of a subclass with a call of its own, in the tools for whole models.

A tool treats such a layer as it treats the plain layer that it calls.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from jaxbn import linen
from jaxbn.models import _batch_stats_by_path, _hooks

RNG = np.random.default_rng(0)
X = (2 + RNG.standard_normal((16, 3))).astype(np.float32)
BATCHES = [X[:6], 3 * X[6:], X]


class Own(linen.BatchNorm):
    """Takes other arguments, counts its calls, multiplies and applies a ReLU."""

    @nn.compact
    def __call__(self, inputs, train):
        calls = self.variable("batch_stats", "calls", lambda: jnp.zeros((), int))
        gain = self.param("gain", nn.initializers.constant(2.0), (1, 1))
        if train and not self.is_initializing():
            calls.value += self.is_mutable_collection("batch_stats")
        y = super().__call__(x=inputs, use_running_average=not train)
        return nn.relu(gain * y)


class Plain(nn.Module):
    """Does the same with two modules; the path of the layer is `{path}/bn`."""

    @nn.compact
    def __call__(self, inputs, train):
        y = linen.BatchNorm(momentum=0.5, name="bn")(inputs, not train)
        return nn.relu(2 * y)


class Net(nn.Module):
    own: bool

    @nn.compact
    def __call__(self, x, train):
        make = lambda name: (  # noqa: E731
            Own(momentum=0.5, name=name) if self.own else Plain(name=name)
        )
        x = make("first")(nn.Dense(4, name="dense")(x), train)
        x = nn.Dense(4, name="head")(x)
        return make("last")(x, train)


class NnxOwn(jaxbn.nnx.BatchNorm):
    """`Own` as an NNX layer."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.calls = nnx.BatchStat(jnp.zeros((), int))

    def __call__(self, inputs, scaled):
        if not self.use_running_average:
            self.calls[...] += 1
        return nnx.relu(scaled * super().__call__(x=inputs))


class NnxPlain(nnx.Module):
    def __init__(self, *args, **options):
        self.bn = jaxbn.nnx.BatchNorm(*args, **options)

    def __call__(self, inputs, scaled):
        return nnx.relu(scaled * self.bn(inputs))


class NnxNet(nnx.Module):
    def __init__(self, kind):
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.first = kind(4, momentum=0.5, rngs=rngs)
        self.head = nnx.Linear(4, 4, rngs=rngs)
        self.last = kind(4, momentum=0.5, rngs=rngs)

    def __call__(self, x):
        return self.last(self.head(self.first(self.dense(x), 2.0)), 2.0)


def train(model, x):
    return model(x, train=True)


def evaluate(model, x):
    return model(x, train=False)


def call(model, x):
    return model(x)


def both():
    """Returns a network of both kinds and its variables, which have equal values."""
    own = Net(True).init(jax.random.key(0), X, False)
    plain = Net(False).init(jax.random.key(0), X, False)
    stats = {
        name: {"bn": {"mean": RNG.random(4), "var": 1 + RNG.random(4)}}
        for name in ("first", "last")
    }
    plain["batch_stats"] = jax.tree.map(jnp.float32, stats)
    for name in ("first", "last"):
        own["batch_stats"][name] |= plain["batch_stats"][name]["bn"]
    for name in ("dense", "head"):
        own["params"][name] = plain["params"][name]
    return (Net(True), own), (Net(False), plain)


def pairs(tree):
    """Returns mean and variance of the first and the last layer."""
    return {path[0]: pair for path, pair in _batch_stats_by_path.pairs(tree).items()}


@pytest.mark.exhaustive
def test_recalibration():
    own, plain = (jaxbn.recalibrate(*each, BATCHES, train) for each in both())
    # Multiplications by 2 are exact, and both programs sum in the same order.
    found, expected = pairs(own["batch_stats"]), pairs(plain["batch_stats"])
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    assert int(own["batch_stats"]["first"]["calls"]) == 0
    own, plain = (
        jaxbn.recalibrate(NnxNet(kind), None, BATCHES, call)
        for kind in (NnxOwn, NnxPlain)
    )
    found, expected = pairs(nnx.state(own)), pairs(nnx.state(plain))
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    assert type(own.first) is NnxOwn


def test_diagnosis_lists_every_layer_once():
    models = [(NnxNet(kind), None) for kind in (NnxOwn, NnxPlain)]
    for pair, run in ((both(), train), (models, call)):
        own, plain = (jaxbn.diagnose(*each, X, run) for each in pair)
        assert [row.path for row in own.layers] == ["first", "last"]
        for ours, theirs in zip(own.layers, plain.layers, strict=True):
            np.testing.assert_equal(ours[1:], theirs[1:])  # All but the path.


@pytest.mark.exhaustive
def test_freezing_linen():
    made = []
    for net, variables in both():

        def run(params, net=net, variables=variables):
            given = {**variables, "params": params}
            y, new = net.apply(given, X, True, mutable=["batch_stats"])
            return y.sum(), (y, pairs(new["batch_stats"]))

        frozen = jaxbn.freeze(run, "first")
        thawed = {"statistics": False, "updates": False, "bias": False}
        frozen = jaxbn.unfreeze(frozen, "first", **thawed)
        made.append(jax.grad(frozen, has_aux=True)(variables["params"]))
    (own, own_made), (plain, plain_made) = made
    chex.assert_trees_all_close(own_made, plain_made, rtol=1e-6)
    for name in ("scale", "bias"):
        expected = plain["first"]["bn"][name]
        np.testing.assert_allclose(own["first"][name], expected, rtol=1e-5)
    assert np.any(own["first"]["scale"])
    assert not np.any(own["first"]["bias"])


def test_freezing_nnx():
    models = [NnxNet(kind) for kind in (NnxOwn, NnxPlain)]
    own, plain = (jaxbn.freeze(model, "first") for model in models)
    np.testing.assert_allclose(own(X), plain(X), rtol=1e-6)
    np.testing.assert_array_equal(own.first.mean[...], 0)
    np.testing.assert_allclose(own.last.mean[...], plain.last.bn.mean[...], rtol=1e-6)


class WithInner(linen.BatchNorm):
    """Calls another layer, which has a path of its own."""

    @nn.compact
    def __call__(self, x):
        return super().__call__(linen.BatchNorm(False, name="inner")(x), False)


@pytest.mark.exhaustive
def test_rules_for_a_layer_are_not_those_of_a_layer_that_it_calls():
    net = nn.Sequential([WithInner()])
    variables = net.init(jax.random.key(0), X)

    def run(variables):
        return net.apply(variables, X, mutable=["batch_stats"])[1]["batch_stats"]

    frozen = jaxbn.freeze(run, lambda path: path == "layers_0")
    stats = frozen(variables)["layers_0"]
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_allclose(stats["inner"]["mean"], 0.01 * X.mean(0), rtol=1e-5)


def test_folding_linen():
    for net, variables in both():
        new, report = jaxbn.fold(net, variables, X, evaluate)
        places = [(row.outcome, row.into) for row in report.layers]
        assert places == [("folded", "dense"), ("folded", "head")]
        expected = net.apply(variables, X, train=False)
        # Float32 rounding of two layers, relative to the largest output.
        atol = 1e-6 * float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(
            net.apply(new, X, train=False), expected, atol=3 * atol
        )


class Reading(linen.BatchNorm):
    """Also uses its own running statistics."""

    @nn.compact
    def __call__(self, x):
        y = super().__call__(x, use_running_average=True)
        return y + jnp.expand_dims(self.get_variable("batch_stats", "var"), 0)


def test_a_layer_that_reads_its_variables_itself_is_not_folded():
    net = nn.Sequential([nn.Dense(4), Reading(), linen.BatchNorm(True)])
    variables = net.init(jax.random.key(0), X)
    variables = jax.tree.map(lambda leaf: leaf + 0.5, variables)
    new, report = jaxbn.fold(net, variables, X, call)
    (other, reading) = report.layers
    assert (other.path, other.outcome) == ("layers_2", "affine")
    assert (reading.path, reading.outcome) == ("layers_1", "left")
    assert "`Reading` reads its variables itself" in reading.reason
    expected = net.apply(variables, X)
    np.testing.assert_allclose(net.apply(new, X), expected, rtol=1e-5, atol=1e-5)


def test_folding_nnx_leaves_them():
    model = NnxNet(NnxOwn)
    model(X)
    new, report = jaxbn.fold(model, None, X, call)
    assert {row.outcome for row in report.layers} == {"left"}
    model.eval()
    np.testing.assert_array_equal(new(X), model(X))


class Mixin:
    def __call__(self, x, *args):
        return -super().__call__(x, *args)


class Mixed(Mixin, jaxbn.nnx.BatchNorm):
    pass


class OfFlax(nnx.BatchNorm):
    def __call__(self, inputs):
        return 3 * super().__call__(inputs, use_running_average=False)


class LinenOfFlax(nn.BatchNorm):
    def __call__(self, inputs):
        return 3 * super().__call__(inputs, use_running_average=False)


@pytest.mark.parametrize("kind", [Mixed, OfFlax, LinenOfFlax])
def test_a_hook_stands_at_the_call_of_the_class_itself(kind):
    made = []

    def double(layer_call):
        made.append(layer_call.options)
        return 2 * layer_call.proceed()

    if kind is LinenOfFlax:
        layer = kind()
        variables = layer.init(jax.random.key(0), X)
        run = lambda: layer.apply(variables, X, mutable=["batch_stats"])[0]  # noqa: E731
        expected = 2 * run()
        with _hooks.hooked_linen(double):
            actual = run()
    else:
        layer = kind(3, rngs=nnx.Rngs(0))
        expected = 2 * layer(X)
        with _hooks.hooked_nnx(double, layer):
            actual = nnx.jit(call)(layer, X)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert made == [{} if kind is Mixed else {"use_running_average": False}]
