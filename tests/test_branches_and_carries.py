"""Moments are collected inside the transformations of Linen as in an unrolled model."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxbn
from jaxbn import linen, training
from tests import users_estimator

RNG = np.random.default_rng(0)
X = (2 + RNG.standard_normal((12, 4))).astype(np.float32)
STEPS = 3
COLLECTIONS = ["batch_stats", "batch_moments"]


class Cell(nn.Module):
    """A layer with the signature that `nn.scan` needs."""

    estimator: Any = "ema"

    @nn.compact
    def __call__(self, x, _=None):
        x = nn.Dense(4)(x)
        momentum = {"momentum": 0.9} if self.estimator in ("ema", "debiased") else {}
        return linen.BatchNorm(False, estimator=self.estimator, **momentum)(x), None


def call(cell, x):
    return cell(x)[0]


class Branches(nn.Module):
    """A cell for each sign of the first number; both see the batch while it begins."""

    transformed: bool
    kind: str
    estimator: Any = "ema"

    def setup(self):
        self.cells = [Cell(self.estimator), Cell(self.estimator)]

    def __call__(self, x, index=1):
        if self.is_initializing():
            return [call(cell, x) for cell in self.cells][-1]
        if not self.transformed:
            return call(self.cells[index], x)
        branches = [lambda module, x, i=i: call(module.cells[i], x) for i in (0, 1)]
        index = jnp.asarray(index) + jnp.int32(0 * x[0, 0])
        if self.kind == "switch":
            return nn.switch(index, branches, self, x)
        return nn.cond(index == 1, branches[1], branches[0], self, x)


class Repeated(nn.Module):
    """One cell that is called several times; the steps share all its variables."""

    transformed: bool
    kind: str
    estimator: Any = "ema"

    def setup(self):
        self.cell = Cell(self.estimator)

    def __call__(self, x):
        if not self.transformed or self.is_initializing():
            for _ in range(STEPS):
                x = call(self.cell, x)
            return x
        if self.kind == "scan":
            scanned = nn.scan(
                lambda cell, x, _: cell(x),
                variable_broadcast="params",
                variable_carry=COLLECTIONS,
                split_rngs={"params": False},
                length=STEPS,
            )
            return scanned(self.cell, x, None)[0]
        return nn.while_loop(
            lambda cell, carry: carry[0] < STEPS,
            lambda cell, carry: (carry[0] + 1, call(cell, carry[1])),
            self.cell,
            (jnp.int32(0), x),
            carry_variables=COLLECTIONS,
        )[1]


KINDS = {
    "switch": Branches,
    "cond": Branches,
    "scan": Repeated,
    "while_loop": Repeated,
}


def make(kind, estimator="ema"):
    """The model, the same without a transformation, and variables of both."""
    pair = [KINDS[kind](transformed, kind, estimator) for transformed in (True, False)]
    return *pair, pair[1].init(jax.random.key(0), X)


def collected(model, variables):
    """The statistics after two passes that are collected by hand."""
    given = variables | {
        "batch_moments": jaxbn.begin_accumulation(variables["batch_stats"])
    }
    for part in (X[:5], X[5:]):
        # Flax carries only what is mutable; the layers leave their statistics alone.
        _, made = model.apply(given, part, mutable=COLLECTIONS)
        given |= made
    return jaxbn.end_accumulation(given["batch_stats"], given["batch_moments"])


def recalibrated(model, variables):
    parts = [X[:6], X[6:]]
    new = jaxbn.recalibrate(model, variables, parts, lambda model, x: model(x))
    return new["batch_stats"]


def accumulated(model, variables):
    def loss_fn(model, batch, train):
        return {"loss": jnp.sum(model(batch["x"]) ** 2, -1)}

    state = training.TrainState.create(model.apply, variables, optax.sgd(0.0))
    step = training.make_train_step(loss_fn, micro_batches=3)
    return step(jax.tree.map(jnp.copy, state), {"x": X})[0].batch_stats


TOOLS = {
    "collected": collected,
    "recalibrated": recalibrated,
    "accumulated": accumulated,
}


# JAX has no reverse-mode derivative of a while loop.
CASES = [
    (kind, tool, "ema")
    for kind in KINDS
    for tool in TOOLS
    if (kind, tool) != ("while_loop", "accumulated")
] + [
    (kind, tool, estimator)
    for kind in ("switch", "scan")
    for tool in ("collected", "accumulated")
    for estimator in ("debiased", "window", users_estimator.Cumulative())
]


@pytest.mark.first_case
@pytest.mark.parametrize(("kind", "tool", "estimator"), CASES)
def test_equals_the_unrolled_model(kind, tool, estimator):
    model, unrolled, variables = make(kind, estimator)
    new = TOOLS[tool](model, variables)
    expected = TOOLS[tool](unrolled, variables)
    chex.assert_trees_all_close(new, expected, rtol=1e-4, atol=1e-5)
    before = variables["batch_stats"]
    moved = jax.tree.map(lambda old, new: bool(np.any(old != new)), before, new)
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize("kind", ["switch", "cond", "while_loop"])
def test_a_first_pass_by_hand_says_what_is_missing(kind):
    model, _, variables = make(kind)
    message = r"layer 'cell.*BatchNorm_0' must exist before .*`jaxbn.begin_accumulation"
    with pytest.raises(ValueError, match=message):
        model.apply(variables, X, mutable=COLLECTIONS)


def test_of_a_shared_cell_in_float64():
    """All calls of the cell count: the moments are those of all its inputs."""
    model, _, variables = make("scan")
    stats = collected(model, variables)["cell"]["BatchNorm_0"]
    dense = variables["params"]["cell"]["Dense_0"]
    kernel = np.asarray(dense["kernel"], np.float64)
    inputs = []
    for part in (X[:5].astype(np.float64), X[5:].astype(np.float64)):
        for _ in range(STEPS):
            z = part @ kernel
            inputs.append(z)
            part = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
    whole = np.concatenate(inputs)
    np.testing.assert_allclose(stats["mean"], 0.1 * whole.mean(0), rtol=1e-4, atol=1e-6)
    expected = 0.9 + 0.1 * whole.var(0, ddof=1)
    np.testing.assert_allclose(stats["var"], expected, rtol=1e-4)


class Stacked(nn.Module):
    """Cells that `nn.scan` or `nn.vmap` stacks, with an axis for every collection."""

    axes: tuple
    shared: bool = False
    length: int = STEPS

    def setup(self):
        self.cell = Cell()

    def __call__(self, x):
        if self.is_initializing() and self.shared:
            return call(self.cell, x)
        scanned = nn.scan(
            lambda cell, x, _: cell(x),
            variable_axes=dict(self.axes),
            variable_broadcast="params" if self.shared else False,
            variable_carry="batch_stats" if self.shared else False,
            split_rngs={"params": not self.shared},
            length=self.length,
        )
        return scanned(self.cell, x, None)[0]


@pytest.mark.first_case
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("axis", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_stacked_on_one_axis(tool, axis):
    model = Stacked((("params", 0), ("batch_stats", axis), ("batch_moments", axis)))
    variables = model.init(jax.random.key(0), X)
    first = Stacked((("params", 0), ("batch_stats", 0), ("batch_moments", 0)))
    move = lambda leaf: jnp.moveaxis(leaf, axis, 0)  # noqa: E731
    stats = jax.tree.map(move, variables["batch_stats"])
    expected = TOOLS[tool](first, variables | {"batch_stats": stats})
    new = jax.tree.map(move, TOOLS[tool](model, variables))
    chex.assert_trees_all_close(new, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tool", ["recalibrated", "accumulated"])
@pytest.mark.parametrize("length", [3, 4])  # 4 is also the number of channels.
@pytest.mark.parametrize(
    "axes",
    [
        {"batch_moments": 0},  # The cell is shared, its statistics are carried.
        {},  # Nothing is said of the collection.
    ],
)
def test_another_axis_than_the_statistics_have(tool, length, axes):
    model = Stacked(tuple(axes.items()), shared=True, length=length)
    variables = model.init(jax.random.key(0), X)
    advice = r"variable_carry=\['batch_stats', 'batch_moments'\]"
    with pytest.raises((ValueError, nn.module.errors.FlaxError), match=advice):
        TOOLS[tool](model, variables)


def test_moments_of_another_shape_do_not_replace_statistics():
    """A first pass by hand makes the collection itself, stacked over the steps."""
    model = Stacked((("batch_moments", 0),), shared=True)
    variables = model.init(jax.random.key(0), X)
    _, made = model.apply(variables, X, mutable=COLLECTIONS)
    message = (
        r"layer 'cell/BatchNorm_0' must have .* \(4,\), got \(3, 4\).*variable_car"
    )
    with pytest.raises(ValueError, match=message):
        jaxbn.end_accumulation(variables["batch_stats"], made["batch_moments"])
