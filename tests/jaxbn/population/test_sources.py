"""Linen and NNX models give the same moments, by flags and by layer."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import linen
from jaxbn.population import sources

X = (2 + np.random.default_rng(0).standard_normal((16, 3))).astype(np.float32)
OPTIONS = {"activation": "relu", "momentum": 0.5}
CALL = lambda model, x: model(x)  # noqa: E731


class Block(nn.Module):
    """A block that sets its mode in the layer's constructor or in its call."""

    in_call: bool = False

    @nn.compact
    def __call__(self, x):
        flag = None if self.in_call else False
        norm = linen.BatchNorm(flag, **OPTIONS)
        return norm(x, False if self.in_call else None, residual=jnp.sin(x))


# Each class is wrapped only once, so that `nn.jit` keeps its traces.
BLOCKS = {"none": Block, "jit": nn.jit(Block), "remat": nn.remat(Block)}


class Net(nn.Module):
    wrap: str = "none"

    @nn.compact
    def __call__(self, x):
        block = BLOCKS[self.wrap]
        # The blocks are made in another order than they are called.
        last, first = block(name="last"), block(True, name="first")
        return last(first(x) ** 2)


class Model(nnx.Module):
    def __init__(self, wrap="none"):
        make = lambda: jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0), **OPTIONS)  # noqa: E731
        self.first, self.last, self.never = make(), make(), make()
        self.wrap = wrap

    def __call__(self, x):
        wrap = {"none": lambda f: f, "jit": nnx.jit, "remat": nnx.remat}[self.wrap]

        @wrap
        def run(first, last, x):
            x = first(x, False, residual=jnp.sin(x))
            return last(x**2, residual=jnp.sin(x**2))

        return run(self.first, self.last, x)


STATS = {"mean": jnp.ones(3), "var": jnp.full(3, 4.0)}
FIRST, LAST = ("first", "BatchNorm_0"), ("last", "BatchNorm_0")


def source_and_given(kind, wrap="none"):
    if kind == "linen":
        variables = Net(wrap).init(jax.random.key(0), X)
        stats = {name: {"BatchNorm_0": STATS} for name in ("first", "last")}
        given = {**variables, "batch_stats": stats}
        return sources.Linen(Net(wrap), CALL, None), given
    model = Model(wrap)
    for norm in (model.first, model.last):
        norm.mean[...], norm.var[...] = STATS.values()
    graph, state = nnx.split(model)
    return sources.Nnx(graph, CALL), state


def short(paths):
    return [path[0] for path in paths]


def relu_norm(x, mean, var):
    return np.maximum((x - mean) / np.sqrt(var + 1e-5) + np.sin(x), 0)


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        ("linen", "none"),
        ("linen", "jit"),
        ("nnx", "none"),
        pytest.param("linen", "remat", marks=pytest.mark.exhaustive),
        pytest.param("nnx", "jit", marks=pytest.mark.exhaustive),
        pytest.param("nnx", "remat", marks=pytest.mark.exhaustive),
    ],
)
def test_flags_choose_what_normalises(kind, wrap):
    source, given = source_and_given(kind, wrap)
    for _ in range(2):  # Under jit, what was traced before is not taken.
        assert short(source.order(given, X)) == ["first", "last"]
    paths = jax.eval_shape(source.moments, given, X, {})
    moments = jax.jit(source.moments)
    x = X.astype(np.float64)
    for flag, stats in ((False, (x.mean(0), x.var(0))), (True, (1.0, 4.0))):
        made = moments(given, X, {path: jnp.full(3, flag) for path in paths})
        made = {path[0]: each for path, each in made.items()}
        np.testing.assert_allclose(made["first"].mean, x.mean(0), rtol=1e-6)
        expected = relu_norm(x, *stats) ** 2
        np.testing.assert_allclose(made["last"].mean, expected.mean(0), rtol=1e-5)
        np.testing.assert_allclose(made["last"].var, expected.var(0), rtol=1e-4)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_replaced(kind):
    source, given = source_and_given(kind)
    before = jax.tree.map(np.array, given)
    totals = source.moments(given, X, {})
    (path,) = (path for path in totals if path[0] == "last")
    replace = lambda old, total: jaxbn.BatchStats(2 * old.mean, total.count)  # noqa: E731
    new = source.replaced(given, {path: totals[path]}, replace)
    chex.assert_trees_all_equal(given, before)
    chex.assert_trees_all_equal_structs(new, given)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), new, before)
    assert sum(jax.tree.leaves(changed)) == 2
    found = sources.Nnx if kind == "nnx" else sources.Linen
    assert isinstance(source, found)
    leaves = jax.tree.leaves(
        new["batch_stats"]["last"] if kind == "linen" else new["last"]
    )
    assert {float(np.ravel(leaf)[0]) for leaf in leaves} >= {2.0, 16.0}


def test_a_collection_of_this_name_is_not_taken_over():
    source, given = source_and_given("linen")
    _, collected = Net().apply(given, 5 * X, mutable=["batch_moments"])
    chex.assert_trees_all_equal(
        source.moments({**given, **collected}, X, {}), source.moments(given, X, {})
    )
