"""Layers of a model by path, hooks for their calls, and their statistics in a tree."""

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
from jaxbn.models import _batch_stats_by_path, _hooks, _layers_by_path

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)


class Model(nnx.Module):
    """A shared layer, one of Flax, one in a list."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a = jaxbn.nnx.BatchNorm(3, rngs=rngs)
        self.also_a = self.a
        self.theirs = nnx.BatchNorm(3, rngs=rngs)
        self.many = nnx.List([jaxbn.nnx.BatchNorm(3, rngs=rngs)])

    def __call__(self, x):
        inner = nnx.jit(lambda layer, x: layer(x, False))
        return self.theirs(inner(self.a, self.many[0](x=self.also_a(x))))


def test_a_layer_is_ours_or_flaxs(monkeypatch):
    class Both(linen.BatchNorm, nn.BatchNorm):
        pass

    class NnxBoth(jaxbn.nnx.BatchNorm, nnx.BatchNorm):
        pass

    rngs = nnx.Rngs(0)
    ours = linen.BatchNorm(), jaxbn.nnx.BatchNorm(3, rngs=rngs), Both(), NnxBoth(3, rngs=rngs)  # fmt: skip # noqa: E501
    theirs = nn.BatchNorm(), nnx.BatchNorm(3, rngs=rngs)
    others = nn.LayerNorm(), nnx.LayerNorm(3, rngs=rngs), None, nn.BatchNorm
    for _ in range(2):  # Before and after jaxbn's classes take the place of Flax's.
        every = *ours, *theirs, *others
        assert [*map(_layers_by_path.is_ours, every)] == [True] * 4 + [False] * 6
        assert [*map(_layers_by_path.is_flax, every)] == [False] * 4 + [True] * 2 + [
            False
        ] * 4
        monkeypatch.setattr("flax.linen.BatchNorm", linen.BatchNorm)
        monkeypatch.setattr("flax.nnx.BatchNorm", jaxbn.nnx.BatchNorm)
    assert all(
        _layers_by_path.base_class(layer).__module__[:6] == "jaxbn." for layer in ours
    )


def test_layers_of_an_nnx_model():
    model = Model()
    assert set(_layers_by_path.nnx_layers(model)) == {
        ("a",),
        ("theirs",),
        ("many", "0"),
    }
    ours = _layers_by_path.nnx_layers(model, (jaxbn.nnx.BatchNorm,))
    assert set(ours) == {("a",), ("many", "0")}
    with pytest.raises(ValueError, match=r"\['theirs'\] could not be collected"):
        _layers_by_path.check_collectable(model)


PATHS = ("bn", "encoder/block_0/bn", "encoder/block_1/norm", "head/bn")


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        (None, PATHS),
        ("bn", PATHS[:1]),
        ("encoder", PATHS[1:3]),
        ("encoder/block_?", PATHS[1:3]),
        ("*/bn", (PATHS[1], PATHS[3])),
        (["head", "*norm"], PATHS[2:]),
        (lambda path: path.startswith("h"), PATHS[3:]),
        ("enc", ()),
        ("BN", ()),
    ],
)
def test_where(where, meant):
    assert tuple(filter(_layers_by_path.as_predicate(where), PATHS)) == meant


def test_mistakes_in_where():
    for where in (3, ["a", 1], b"bn"):
        with pytest.raises(TypeError, match="`where` must be a pattern"):
            _layers_by_path.as_predicate(where)
    _layers_by_path.check_any("bn", ["bn"], PATHS)
    message = r"got {}; the layers of jaxbn are .*head/bn"
    with pytest.raises(ValueError, match=message.format("'bm'")):
        _layers_by_path.check_any("bm", [], PATHS)
    with pytest.raises(ValueError, match=message.format(r"\['bm'\]")):
        _layers_by_path.check_any(["bn", "bm"], ["bn"], PATHS)


def test_hooked_calls_of_an_nnx_model():
    model, other, calls = Model(), Model(), []
    expected = Model()(X)
    classes = jaxbn.nnx.BatchNorm.__call__, nnx.BatchNorm.__call__

    def note(call):
        calls.append((call.path, dict(call.options)))
        return call.proceed()

    with _hooks.hooked_nnx(note, model):
        np.testing.assert_array_equal(model(X), expected)
        np.testing.assert_array_equal(other(X), expected)  # It is another model.
    model(X)
    assert calls == [
        (("a",), {}),
        (("many", "0"), {}),
        (("a",), {"use_running_average": False}),  # Within nnx.jit.
        (("theirs",), {}),
    ]
    double = lambda call: 2 * call.x  # noqa: E731
    with _hooks.hooked_nnx(note, other), _hooks.hooked_nnx(double, model):
        np.testing.assert_array_equal(model(X), 16 * X)
        other(X)
    assert len(calls) == 8
    with pytest.raises(ZeroDivisionError), _hooks.hooked_nnx(lambda call: 1 / 0, model):
        model(X)
    assert (jaxbn.nnx.BatchNorm.__call__, nnx.BatchNorm.__call__) == classes


def test_hooked_calls_of_a_linen_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = linen.BatchNorm(name="ours")(x, False)
            return nn.BatchNorm(name="theirs")(x=x, use_running_average=False)

    variables, calls = Net().init(jax.random.key(0), X), []

    def double(call):
        calls.append((call.path, dict(call.options)))
        return 2 * call.x

    with _hooks.hooked_linen(double):
        np.testing.assert_array_equal(Net().apply(variables, X), 4 * X)
    options = {"use_running_average": False}
    assert calls == [(("ours",), options), (("theirs",), options)]


def double(state):
    return {**state, "mean": state["mean"] + 1, "var": 2 * state["var"]}


PAIR = {"mean": np.zeros(3), "var": np.ones(3)}
DOUBLED = {"mean": np.ones(3), "var": np.full(3, 2.0)}
TREES = {
    "dict": lambda pair: {"block": {"bn": pair, "step": 1}},
    "frozen": lambda pair: flax.core.freeze({"block": {"bn": pair}}),
    "list": lambda pair: [pair, 3, {"bn": pair}],
    "tuple": lambda pair: (pair, (pair, 0.5)),
    "BatchStats": lambda pair: {"bn": jaxbn.BatchStats(**pair)},
    "nested": lambda pair: {**pair, "inner": dict(pair)},
    "boxed": lambda pair: {k: nn.Partitioned(v, ("c",)) for k, v in pair.items()},
    "mean of something else": lambda pair: {"mean": {"kernel": 1.0}, "bn": pair},
    "a policy's": lambda pair: {"batch_sync": {"bn": {"own": dict(PAIR)}}, "bn": pair},
}


@pytest.mark.parametrize("name", TREES)
def test_pairs_in_any_container(name):
    tree, expected = TREES[name](PAIR), TREES[name](DOUBLED)
    mapped = _batch_stats_by_path.map_states(double, tree)
    assert jax.tree.structure(mapped) == jax.tree.structure(tree)
    chex.assert_trees_all_equal(mapped, expected)
    chex.assert_trees_all_equal(jaxbn.reset_batch_stats(expected), tree)


def test_pairs_of_an_nnx_state():
    layer = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    state = nnx.state(layer, nnx.BatchStat)
    mapped = _batch_stats_by_path.map_states(double, state)
    assert isinstance(mapped, type(state))
    nnx.update(layer, mapped)
    np.testing.assert_array_equal(layer.mean[...], np.ones(3))
    np.testing.assert_array_equal(layer.var[...], np.full(3, 2.0))


def test_paths_of_pairs():
    tree = {"a": [PAIR, {"bn": PAIR}], "mean": jnp.zeros(2), "b": {"mean": 1.0}}
    assert list(_batch_stats_by_path.pairs(tree)) == [("a", "0"), ("a", "1", "bn")]
    pairs = _batch_stats_by_path.pairs(jaxbn.init_batch_stats(3, estimator="window"))
    chex.assert_trees_all_equal(list(pairs.values()), [tuple(PAIR.values())])
