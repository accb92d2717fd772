"""Tests that training steps leave frozen layers as they are, in Linen and NNX."""

import copy
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
from jaxbn.nnx import BatchNorm
from jaxbn.switches import FROZEN, Frozen

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
        x = Backbone(name="backbone")(x, train)
        x = linen.BatchNorm(use_running_average=not train, name="head_bn")(
            nn.Dense(5)(x)
        )
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


def loss_fn(model, batch, train):
    logits = model(batch["x"], train=train)
    return {"loss": optax.losses.safe_softmax_cross_entropy(logits, batch["y"])}


def nnx_loss_fn(model, batch, train):
    return {
        "loss": optax.losses.safe_softmax_cross_entropy(model(batch["x"]), batch["y"])
    }


def moved(before, after):
    return bool(jnp.any(before != after))


@pytest.mark.parametrize("flags", FLAGS[::3], ids=str)
def test_a_train_step_of_linen(flags):
    net = Net()
    variables = net.init(jax.random.key(0), X, train=False)
    state = training.TrainState.create(net.apply, variables, optax.sgd(0.1))
    frozen = jaxbn.freeze(loss_fn, "backbone", **flags)
    new, _ = training.make_train_step(frozen)(state, BATCH)
    before, after = variables, {"params": new.params, "batch_stats": new.batch_stats}

    def has_moved(*path):
        old, now = before, after
        for name in path:
            old, now = old[name], now[name]
        return moved(old, now)

    assert has_moved("batch_stats", "backbone", "bn", "mean") == (not flags["updates"])
    for name in ("scale", "bias"):
        assert has_moved("params", "backbone", "bn", name) == (not flags[name])
        assert has_moved("params", "head_bn", name)
    assert has_moved("batch_stats", "head_bn", "mean")
    assert has_moved("params", "backbone", "Dense_0", "kernel")


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
    model.train()
    jaxbn.unfreeze(model)
    assert new.frozen == Frozen()


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_which_statistics_normalise(flags):
    layer, net = BatchNorm(4, rngs=nnx.Rngs(0)), linen.BatchNorm()
    variables = net.init(jax.random.key(0), X, use_running_average=True)
    call = jaxbn.freeze(
        lambda: net.apply(
            variables, X, use_running_average=False, mutable=["batch_stats"]
        ),
        **flags,
    )
    y, written = call()
    expected = jaxbn.batch_norm_inference(X, None, None, jaxbn.init_batch_stats(4))
    same = bool(jnp.all(y == expected))
    assert same == flags["statistics"]
    ours = jaxbn.freeze(layer, **flags)(X, use_running_average=False)
    np.testing.assert_array_equal(ours, y)
    np.testing.assert_array_equal(layer.mean[...], written["batch_stats"]["mean"])


@pytest.mark.exhaustive
def test_the_last_rule_counts():
    model = jaxbn.unfreeze(jaxbn.freeze(NnxNet()), "head_bn", scale=False)
    assert model.backbone.layers[1].frozen == Frozen(True, True, True, True)
    assert model.head_bn.frozen == Frozen(False, False, True, False)

    seen = {}

    def function(*_):
        def note(next_function, args, kwargs, context):
            if isinstance(context.module, linen.BatchNorm):
                seen["/".join(context.module.path)] = FROZEN.get()
            return next_function(*args, **kwargs)

        net = Net()
        with nn.intercept_methods(note):
            return net.init(jax.random.key(0), X, train=False)

    frozen = jaxbn.unfreeze(jaxbn.freeze(function), "head_bn", scale=False)
    frozen()
    assert frozen.__name__ == "function"
    assert seen["backbone/bn"] == Frozen(True, True, True, True)
    assert seen["head_bn"] == Frozen(False, False, True, False)
    jaxbn.unfreeze(function)()
    assert seen["head_bn"] == Frozen()


class Jitted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.jit(linen.BatchNorm)(use_running_average=False, name="bn")(x)


def mean_after(run, variables):
    return run(variables)[1]["batch_stats"]["bn"]["mean"]


@pytest.mark.parametrize("jitted", [False, True])
def test_traces_of_free_layers_are_not_used_for_frozen_ones(jitted):
    net = Jitted()
    variables = net.init(jax.random.key(0), X)

    def run(variables):
        return net.apply(variables, X, mutable=["batch_stats"])

    run = jax.jit(run) if jitted else run
    for _ in range(2):
        assert moved(0, mean_after(run, variables))
        frozen = jaxbn.freeze(run, "bn")
        for _ in range(2):
            assert not moved(0, mean_after(frozen, variables))


def test_frozen_functions_within_each_other_add_up():
    net = Net()
    variables = net.init(jax.random.key(0), X, train=False)

    def run():
        return net.apply(variables, X, train=True, mutable=["batch_stats"])[1]

    inner = jaxbn.freeze(run, "backbone")
    stats = jaxbn.freeze(lambda: inner(), "head_bn")()["batch_stats"]
    assert not moved(stats["backbone"]["bn"]["mean"], 0)
    assert not moved(stats["head_bn"]["mean"], 0)


def test_the_rules_of_both_decide_which_trace_is_used():
    net = Net()
    variables = net.init(jax.random.key(0), X, train=False)

    @jax.jit
    def run():
        return net.apply(variables, X, train=True, mutable=["batch_stats"])[1]

    inner = jaxbn.freeze(run, "backbone")
    assert moved(inner()["batch_stats"]["head_bn"]["mean"], 0)
    stats = jaxbn.freeze(lambda: inner(), "head_bn")()["batch_stats"]
    assert not moved(stats["head_bn"]["mean"], 0)
    assert not moved(stats["backbone"]["bn"]["mean"], 0)


def is_head(path):
    return path == "head_bn"


def run_net(variables, x):
    TRACES.append(x)
    return Net().apply(variables, x, train=True, mutable=["batch_stats"])[1]


TRACES = []
COPIES = {
    "pickle": lambda made: pickle.loads(pickle.dumps(made)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("where", [None, "backbone", ["head_bn", "backbone"], is_head])
@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_frozen_function(how, where):
    frozen = jaxbn.unfreeze(jaxbn.freeze(run_net, where, bias=False), where)
    frozen = jaxbn.freeze(frozen, where)
    copied = COPIES[how](frozen)
    assert copied == frozen
    assert hash(copied) == hash(frozen)
    variables = Net().init(jax.random.key(0), X, train=False)
    stats = copied(variables, X)["batch_stats"]
    assert moved(stats["head_bn"]["mean"], 0) == (where == "backbone")
    assert copied.__name__ == "run_net"


def test_what_equal_frozen_functions_are():
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


def test_equal_functions_are_traced_once():
    variables = Net().init(jax.random.key(0), X, train=False)
    make = lambda **flags: jaxbn.freeze(run_net, ["backbone"], **flags)  # noqa: E731

    def count(function):
        TRACES.clear()
        function(variables, X)
        return len(TRACES)

    first = make()  # `jit` forgets the traces of a function that is gone.
    assert count(jax.jit(first)) == 1
    assert count(jax.jit(make())) == 0
    assert count(jax.jit(copy.deepcopy(first))) == 0
    assert count(jax.jit(make(bias=False))) == 1


@pytest.mark.parametrize("same", [True, False])
def test_a_jitted_function_is_traced_once_for_equal_rules(same):
    net, traces = Net(), []
    variables = net.init(jax.random.key(0), X, train=False)

    @jax.jit
    def run(variables):
        traces.append(1)
        return net.apply(variables, X, train=True, mutable=["batch_stats"])[1]

    def make(where):
        # The two functions do not compare equal, but their rules do.
        return jaxbn.freeze(run if same else lambda variables: run(variables), where)

    for where, number in ((["backbone"], 1), (["backbone"], 1), (["head_bn"], 2)):
        frozen = make(where)
        for _ in range(2):
            stats = frozen(variables)["batch_stats"]
            assert moved(stats["head_bn"]["mean"], 0) == (where != ["head_bn"])
            assert moved(stats["backbone"]["bn"]["mean"], 0) == (where != ["backbone"])
        assert len(traces) == number


def test_layers_of_another_function_with_equal_rules_do_not_count():
    net, other = Net(), Jitted()
    variables = net.init(jax.random.key(0), X, train=False)
    jaxbn.freeze(lambda: net.apply(variables, X, train=False), "head_bn")()
    given = other.init(jax.random.key(0), X)
    call = jaxbn.freeze(
        lambda: other.apply(given, X, mutable=["batch_stats"]), "head_bn"
    )
    with pytest.raises(ValueError, match=r"got 'head_bn'; the layers .*\['bn'\]"):
        call()


def test_recalibration_leaves_frozen_layers_alone():
    model = jaxbn.freeze(NnxNet(), "backbone")
    new = jaxbn.recalibrate(model, None, [X], lambda model, x: model(x))
    kept, taken = new.backbone.layers[1], new.head_bn
    np.testing.assert_array_equal(kept.mean[...], 0)
    assert moved(taken.mean[...], model.head_bn.mean[...])


def test_mistakes():
    with pytest.raises(ValueError, match=r"got 'encoder'; the layers .* 'head_bn'"):
        jaxbn.freeze(NnxNet(), "encoder")
    net = Net()
    variables = net.init(jax.random.key(0), X, train=False)
    call = jaxbn.freeze(lambda: net.apply(variables, X, train=False), "encoder")
    with pytest.raises(ValueError, match=r"got 'encoder'; the layers .* 'head_bn'"):
        call()
    with pytest.raises(TypeError, match="`target` must be an NNX model, or a function"):
        jaxbn.freeze(net)
    with pytest.raises(TypeError, match="got dict"):
        jaxbn.freeze(variables)


def test_layers_of_flax_would_go_on_training():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.BatchNorm(3, rngs=rngs), BatchNorm(3, rngs=rngs))
    with pytest.raises(ValueError, match=r"got also Flax's \['layers/0'\]"):
        jaxbn.freeze(model)
    jaxbn.freeze(model, "layers/1")
    net = nn.Sequential(
        [
            nn.BatchNorm(use_running_average=False),
            linen.BatchNorm(use_running_average=False),
        ]
    )
    x = jnp.ones((4, 3))
    variables = net.init(jax.random.key(0), x)

    def run(x):
        return net.apply(variables, x, mutable=["batch_stats"])

    with pytest.raises(ValueError, match=r"got also Flax's \['layers_0'\]"):
        jaxbn.freeze(run)(x)
    jaxbn.freeze(run, "layers_1")(x)
