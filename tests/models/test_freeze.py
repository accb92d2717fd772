"""Training steps leave frozen layers as they are, in Linen and NNX."""

import copy
import functools
import itertools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn
from jaxbn import linen, training
from jaxbn._layers.switches import Frozen
from jaxbn.models import _freeze
from jaxbn.nnx import BatchNorm

RNG = np.random.default_rng(0)
X = jnp.asarray(3 + RNG.standard_normal((16, 4)), jnp.float32)
BATCH = {"x": X, "y": jax.nn.one_hot(jnp.arange(16) % 3, 3)}
FLAGS = [
    dict(zip(Frozen._fields, on, strict=True))
    for on in itertools.product([True, False], repeat=4)
]


class Backbone(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(5)(x)
        return nn.relu(linen.BatchNorm(name="bn")(x, use_running_average=not train))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(5)(Backbone(name="backbone")(x, train))
        x = linen.BatchNorm(name="head_bn")(x, use_running_average=not train)
        return nn.Dense(3)(x)


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.backbone = nnx.Sequential(
            nnx.Linear(4, 5, rngs=rngs), BatchNorm(5, rngs=rngs)
        )
        self.head_bn = BatchNorm(5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.head_bn(nnx.relu(self.backbone(x))))


@functools.cache
def variables():
    return jax.jit(functools.partial(Net().init, train=False))(jax.random.key(0), X)


def loss_fn(model, batch, train):
    logits = model(batch["x"], train=train)
    return {"loss": optax.losses.safe_softmax_cross_entropy(logits, batch["y"])}


def nnx_loss_fn(model, batch, train):
    return loss_fn(lambda x, train: model(x), batch, train)


def moved(before, after):
    return bool(jnp.any(before != after))


def statistics_move(written):
    """Returns whether the first and the second layer's statistics have moved."""
    stats = written["batch_stats"]
    return moved(stats["backbone"]["bn"]["mean"], 0), moved(stats["head_bn"]["mean"], 0)


@pytest.mark.first_case
@pytest.mark.parametrize("flags", FLAGS[::3], ids=str)
def test_a_train_step_of_linen(flags):
    state = training.TrainState.create(Net().apply, variables(), optax.sgd(0.1))
    frozen = jaxbn.freeze(loss_fn, "backbone", **flags)
    step = training.make_train_step(frozen)
    new, _ = step(jax.tree.map(jnp.copy, state), BATCH)  # It donates its state.
    params = jax.tree.map(moved, state.params, new.params)
    stats = jax.tree.map(moved, state.batch_stats, new.batch_stats)
    assert stats["backbone"]["bn"]["mean"] == (not flags["updates"])
    for name in ("scale", "bias"):
        assert params["backbone"]["bn"][name] == (not flags[name])
        assert params["head_bn"][name]
    assert stats["head_bn"]["mean"]
    assert params["backbone"]["Dense_0"]["kernel"]


@pytest.mark.first_case
@pytest.mark.parametrize("flags", FLAGS[::3], ids=str)
def test_a_train_step_of_nnx_and_back(flags):
    model = NnxNet()
    assert jaxbn.freeze(model, "backbone", **flags) is model
    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    before = nnx.clone(model)
    training.make_nnx_train_step(nnx_loss_fn)(model, optimizer, BATCH)
    old, new = before.backbone.layers[1], model.backbone.layers[1]
    assert moved(old.mean[...], new.mean[...]) == (not flags["updates"])
    assert moved(old.scale[...], new.scale[...]) == (not flags["scale"])
    assert moved(old.bias[...], new.bias[...]) == (not flags["bias"])
    assert moved(before.head_bn.mean[...], model.head_bn.mean[...])
    jaxbn.unfreeze(model)
    assert new.frozen == Frozen()


@pytest.mark.first_case
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_the_statistics_that_normalise(flags):
    layer, net = BatchNorm(4, rngs=nnx.Rngs(0)), linen.BatchNorm(False)
    given = {
        "params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
    }
    run = jaxbn.freeze(lambda: net.apply(given, X, mutable=["batch_stats"]), **flags)
    y, written = run()
    expected = jaxbn.batch_norm_inference(X, None, None, jaxbn.init_batch_stats(4))
    assert bool(jnp.all(y == expected)) == flags["statistics"]
    ours = jaxbn.freeze(layer, **flags)(X, use_running_average=False)
    np.testing.assert_array_equal(ours, y)
    np.testing.assert_array_equal(layer.mean[...], written["batch_stats"]["mean"])


def test_the_last_rule_counts():
    model = jaxbn.unfreeze(jaxbn.freeze(NnxNet()), "head_bn", scale=False)
    assert model.backbone.layers[1].frozen == Frozen(True, True, True, True)
    assert model.head_bn.frozen == Frozen(False, False, True, False)

    def function(*_):
        Net().apply(variables(), X, train=False)
        return [_freeze.frozen_now(path) for path in ("backbone/bn", "head_bn")]

    frozen = jaxbn.unfreeze(jaxbn.freeze(function), "head_bn", scale=False)
    assert frozen() == [Frozen(True, True, True, True), Frozen(scale=True)]
    assert frozen.__name__ == "function"
    assert jaxbn.unfreeze(function)() == [Frozen(), Frozen()]


TRACES = []


def run_net(variables, x):
    TRACES.append(x)
    return Net().apply(variables, x, train=True, mutable=["batch_stats"])[1]


def is_head(path):
    return path == "head_bn"


@pytest.mark.exhaustive
@pytest.mark.parametrize("jitted", [False, True])
def test_frozen_functions_within_each_other_add_up(jitted):
    """The rules of both decide which trace is used."""
    function = jax.jit(run_net) if jitted else run_net
    inner = jaxbn.freeze(function, "backbone")
    assert statistics_move(inner(variables(), X)) == (False, True)
    outer = jaxbn.freeze(lambda *args: inner(*args), "head_bn")
    assert statistics_move(outer(variables(), X)) == (False, False)


class Jitted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.jit(linen.BatchNorm)(use_running_average=False, name="bn")(x)


@pytest.mark.parametrize("jitted", [False, True])
def test_traces_of_free_layers_are_not_used_for_frozen_ones(jitted):
    given = Jitted().init(jax.random.key(0), X)

    def run(given):
        _, written = Jitted().apply(given, X, mutable=["batch_stats"])
        return written["batch_stats"]["bn"]["mean"]

    run = jax.jit(run) if jitted else run
    for _ in range(2):
        assert moved(0, run(given))
        frozen = jaxbn.freeze(run, "bn")
        for _ in range(2):
            assert not moved(0, frozen(given))


COPIES = {
    "pickle": lambda made: pickle.loads(pickle.dumps(made)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.first_case
@pytest.mark.parametrize("where", [None, "backbone", ["head_bn", "backbone"], is_head])
@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_frozen_function(how, where):
    frozen = jaxbn.unfreeze(jaxbn.freeze(run_net, where, bias=False), where)
    frozen = jaxbn.freeze(frozen, where)
    copied = COPIES[how](frozen)
    assert copied == frozen
    assert hash(copied) == hash(frozen)
    assert copied.__name__ == "run_net"
    if how == "pickle":
        assert statistics_move(copied(variables(), X))[1] == (where == "backbone")


def test_equal_functions_are_equal_and_traced_once():
    def make(function=run_net, where=("backbone",), **flags):
        return jaxbn.freeze(function, where, **flags)

    others = [
        make(where="backbone"),
        make(where=None),
        make(bias=False),
        make(loss_fn),
        jaxbn.unfreeze(run_net, ("backbone",)),
        jaxbn.freeze(make(), ("backbone",)),
        run_net,
    ]
    assert make() == make(where=["backbone"])
    assert hash(make()) == hash(make(where=["backbone"]))
    for place, other in enumerate(others):
        assert make() != other
        assert other not in others[:place]

    def count(function):
        TRACES.clear()
        function(variables(), X)
        return len(TRACES)

    first = make()  # `jit` forgets the traces of a function that is gone.
    assert count(jax.jit(first)) == 1
    assert count(jax.jit(make())) == 0
    assert count(jax.jit(copy.deepcopy(first))) == 0
    assert count(jax.jit(make(bias=False))) == 1


@pytest.mark.parametrize("same", [True, False])
def test_a_jitted_function_is_traced_once_for_equal_rules(same):
    run = jax.jit(lambda variables: run_net(variables, X))
    TRACES.clear()
    for where, number in ((["backbone"], 1), (["backbone"], 1), (["head_bn"], 2)):
        # The functions may differ while their rules are equal.
        function = run if same else lambda variables: run(variables)
        frozen = jaxbn.freeze(function, where)
        for _ in range(2):
            expected = where != ["backbone"], where != ["head_bn"]
            assert statistics_move(frozen(variables())) == expected
        assert len(TRACES) == number


def test_layers_of_another_function_with_equal_rules_do_not_count():
    jaxbn.freeze(lambda: Net().apply(variables(), X, train=False), "head_bn")()
    given = Jitted().init(jax.random.key(0), X)
    run = jaxbn.freeze(lambda: Jitted().apply(given, X, mutable=True), "head_bn")
    with pytest.raises(ValueError, match=r"got 'head_bn'; the layers .*\['bn'\]"):
        run()


def test_recalibration_leaves_frozen_layers_alone():
    model = jaxbn.freeze(NnxNet(), "backbone")
    new = jaxbn.recalibrate(model, None, [X], lambda model, x: model(x))
    np.testing.assert_array_equal(new.backbone.layers[1].mean[...], 0)
    assert moved(new.head_bn.mean[...], model.head_bn.mean[...])


def test_mistakes():
    run = jaxbn.freeze(lambda: Net().apply(variables(), X, train=False), "encoder")
    for call in (run, lambda: jaxbn.freeze(NnxNet(), "encoder")):
        with pytest.raises(ValueError, match=r"got 'encoder'; the layers .* 'head_bn'"):
            call()
    with pytest.raises(TypeError, match="`target` must be an NNX model, or a function"):
        jaxbn.freeze(Net())
    with pytest.raises(TypeError, match="got dict"):
        jaxbn.freeze(variables())


def test_layers_of_flax_would_go_on_training():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.BatchNorm(4, rngs=rngs), BatchNorm(4, rngs=rngs))
    net = nn.Sequential([nn.BatchNorm(False), linen.BatchNorm(False)])
    given = net.init(jax.random.key(0), X)

    def run(x):
        return net.apply(given, x, mutable=["batch_stats"])

    with pytest.raises(ValueError, match=r"got also Flax's \['layers/0'\]"):
        jaxbn.freeze(model)
    jaxbn.freeze(model, "layers/1")
    with pytest.raises(ValueError, match=r"got also Flax's \['layers_0'\]"):
        jaxbn.freeze(run)(X)
    jaxbn.freeze(run, "layers_1")(X)
