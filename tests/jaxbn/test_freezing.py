"""Frozen layers: what stays as it is, in Linen and NNX, through training steps."""

import itertools

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
from jaxbn.switches import Frozen

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


def test_the_last_rule_counts():
    model = jaxbn.unfreeze(jaxbn.freeze(NnxNet()), "head_bn", scale=False)
    assert model.backbone.layers[1].frozen == Frozen(True, True, True, True)
    assert model.head_bn.frozen == Frozen(False, False, True, False)

    seen = {}

    def function(*_):
        def note(next_function, args, kwargs, context):
            if isinstance(context.module, linen.BatchNorm):
                seen["/".join(context.module.path)] = kwargs["frozen"]
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
