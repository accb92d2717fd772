"""Passes that collect moments move the state of other modules as passes always do."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import linen, training
from tests import small_net

X = (2 + np.random.default_rng(0).standard_normal((12, 4))).astype(np.float32)
PASSES, STEPS = 3, 4
PARTS = [X[i::PASSES] for i in range(PASSES)]


class Counter(nn.Module):
    """Counts examples in the collection that running statistics have."""

    @nn.compact
    def __call__(self, x):
        seen = self.variable("batch_stats", "examples_seen", lambda: jnp.int32(0))
        if not self.is_initializing():
            seen.value += len(x)
        return x


class CountingNorm(linen.BatchNorm):
    """A layer that keeps a counter and a maximum beside its own statistics."""

    @nn.compact
    def __call__(self, x, *args, **kwargs):
        seen = self.variable("batch_stats", "examples_seen", lambda: jnp.int32(0))
        largest = self.variable("batch_stats", "largest", jnp.zeros, x.shape[-1])
        if not self.is_initializing():
            seen.value += len(x)
            largest.value = jnp.maximum(largest.value, jnp.abs(x).max(0))
        return super().__call__(x, *args, **kwargs)


class Average(nn.Module):
    """Keeps a running mean and variance of its own, as normalisers of input do."""

    @nn.compact
    def __call__(self, x):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1])
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1])
        if not self.is_initializing():
            mean.value += 0.5 * (x.mean(0) - mean.value)
            var.value += 0.5 * (x.var(0) - var.value)
        return x


class Net(nn.Module):
    norm: type = CountingNorm

    @nn.compact
    def __call__(self, x):
        x = Average()(Counter()(x))
        x = nn.SpectralNorm(nn.Dense(5))(x, update_stats=True)
        x = self.norm(use_running_average=False, momentum=0.9, name="norm")(x)
        return linen.BatchNorm(False, momentum=0.5, name="second")(x)


def loss_fn(model, batch, train):
    return {"loss": jnp.sum(model(batch["x"]) ** 2, -1)}


def one_by_one(net, variables):
    """Passes of a model with Flax's kind of update: every layer moves in each."""
    for _ in range(STEPS):
        for part in PARTS:
            _, new = net.apply(variables, part, mutable=["batch_stats"])
            variables = variables | new
    return variables["batch_stats"]


def by_micro_batches(net, variables):
    state = training.TrainState.create(net.apply, variables, optax.sgd(0.0))
    step = training.make_train_step(loss_fn, micro_batches=PASSES)
    for _ in range(STEPS):
        state, _ = step(state, {"x": X})
    return state.batch_stats


def by_hand(net, variables):
    """Every other step begins with a collection that is there already."""
    for step in range(STEPS):
        if step % 2:
            zeros = jaxbn.begin_accumulation(variables["batch_stats"])
            variables = variables | {"batch_moments": zeros}
        for part in PARTS:
            _, new = net.apply(
                variables, part, mutable=["batch_stats", "batch_moments"]
            )
            variables = variables | new
        moments = variables.pop("batch_moments")
        moved = jaxbn.end_accumulation(variables["batch_stats"], moments)
        variables = variables | {"batch_stats": moved}
    return variables["batch_stats"]


def without_layers(stats):
    """Returns the state of all other modules."""
    others = {name: stats["norm"][name] for name in ("examples_seen", "largest")}
    stats = {**stats, "norm": others}
    stats.pop("second")
    return stats


@pytest.mark.exhaustive
@pytest.mark.parametrize("tool", [by_micro_batches, by_hand])
def test_of_linen(tool):
    variables = Net().init(jax.random.key(0), X)
    stats = tool(Net(), jax.tree.map(jnp.copy, variables))
    expected = one_by_one(Net(), variables)
    chex.assert_trees_all_close(
        without_layers(stats), without_layers(expected), rtol=1e-5, atol=1e-6
    )
    assert int(stats["Counter_0"]["examples_seen"]) == STEPS * len(X)
    assert int(stats["norm"]["examples_seen"]) == STEPS * len(X)
    (sigma,) = (
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(stats)
        if "sigma" in jax.tree_util.keystr(path)
    )
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)
    # The power iteration has come near the largest singular value.
    np.testing.assert_allclose(sigma, np.linalg.norm(kernel, 2), rtol=0.02)
    # `norm` standardises each part, so the mean of all parts is 0. `second` moves once
    # per step.
    np.testing.assert_allclose(stats["second"]["mean"], 0, atol=1e-5)
    moved = stats["second"]["var"] - 1
    assert np.all(np.abs(moved) < np.abs(expected["second"]["var"] - 1))


def test_frozen_dicts_stay():
    variables = nn.FrozenDict(Net().init(jax.random.key(0), X))
    stats = by_micro_batches(Net(), variables)
    thawed = by_micro_batches(Net(), variables.unfreeze())
    chex.assert_trees_all_equal(dict(nn.FrozenDict(stats).unfreeze()), thawed)


def test_a_model_without_layers_of_jaxbn():
    """Only the gradient is taken in parts."""
    variables = Counter().init(jax.random.key(0), X)
    variables["params"] = {}
    stats = by_micro_batches(Counter(), variables)
    assert int(stats["examples_seen"]) == STEPS * len(X)


class Small(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        layer = nn.SpectralNorm(nn.Dense(4))
        x = layer(x, update_stats=not self.is_initializing())
        return linen.BatchNorm(False, axis_name=self.axis_name, momentum=0.0)(x)


@pytest.mark.exhaustive
@pytest.mark.parametrize("axis_name", ["data", None])
def test_in_a_checked_shard_map(axis_name):
    """The statistics are those of all devices, or each replica keeps its own."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    variables = Small().init(jax.random.key(0), X)
    state = training.TrainState.create(
        Small(axis_name).apply, variables, optax.sgd(0.0)
    )

    def step(state, x):
        step = training.make_train_step(loss_fn, axis_name="data", micro_batches=2)
        stats = step(state, {"x": x})[0].batch_stats
        return jax.tree.map(lambda leaf: leaf[None], stats)

    specs = {"in_specs": (jax.P(), jax.P("data")), "out_specs": jax.P("data")}
    stats = jax.jit(jax.shard_map(step, mesh=mesh, **specs))(state, X)

    def on_one_device(parts):
        given = variables
        for part in parts:
            mutable = ["batch_stats", "batch_moments"]
            _, new = Small().apply(given, part, mutable=mutable)
            given = given | new
        return jaxbn.end_accumulation(given["batch_stats"], given["batch_moments"])

    # A device takes every other row of its shard in each of the two parts.
    shards = np.split(X, 2)
    parts = [[shard[first::2] for first in (0, 1)] for shard in shards]
    if axis_name is not None:
        parts = [[np.concatenate(both) for both in zip(*parts, strict=True)]] * 2
    expected = [on_one_device(each) for each in parts]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    chex.assert_trees_all_close(stats, stacked, rtol=1e-5, atol=1e-6)


def test_of_nnx():
    model, expected = small_net.WithOtherState(), small_net.WithOtherState()
    for _ in range(STEPS):
        with jaxbn.accumulate(model):
            for part in PARTS:
                model(part)
        for part in PARTS:
            expected(part)
    assert int(model.seen[...]) == STEPS * len(X)
    part, other = (nnx.state(m.spectral) for m in (model, expected))
    chex.assert_trees_all_close(part, other, rtol=1e-6)
    assert np.all(model.norm.mean[...] != expected.norm.mean[...])
