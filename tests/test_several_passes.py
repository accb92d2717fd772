"""Recipes for training with several passes of a model and one update of statistics.

Each is what a user would write, in Linen and in NNX, beside statistics by float64 of
what the first normalisation was given.
"""

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

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

RNG = np.random.default_rng(0)
X = (2 + RNG.standard_normal((24, 4))).astype(np.float32)
OTHER = (5 * RNG.standard_normal((24, 4)) - 1).astype(np.float32)
MOMENTUM = 0.75


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = linen.BatchNorm(momentum=MOMENTUM)(x, use_running_average=not train)
        return nn.Dense(1)(jnp.tanh(nn.Dense(8)(x)))[:, 0]


class Model(nnx.Module):
    """`Net` as an NNX model."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = jaxbn.nnx.BatchNorm(4, momentum=MOMENTUM, rngs=rngs)
        self.first, self.last = (
            nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs),
        )  # fmt: skip

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(self.norm(x))))[:, 0]


def variables():
    return Net().init(jax.random.key(0), X)


def moved_by(*data):
    """The first layer's new statistics after one update by these."""
    x = np.concatenate(data).astype(np.float64)
    var = MOMENTUM + (1 - MOMENTUM) * x.var(0, ddof=1)
    return {"mean": (1 - MOMENTUM) * x.mean(0), "var": var}


def check(stats, *data):
    chex.assert_trees_all_close(dict(stats), moved_by(*data), rtol=1e-5, atol=1e-6)


def of_model(model):
    return {"mean": model.norm.mean[...], "var": model.norm.var[...]}


def gan_loss(real, fake):
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


@pytest.mark.parametrize(
    "take", ["both", pytest.param("real", marks=pytest.mark.exhaustive)]
)
def test_discriminator_in_linen(take):
    """Real and generated images go through it apart, each by its own statistics."""

    @jax.jit
    def step(params, stats, real, fake):
        def loss(params):
            given = {"params": params, "batch_stats": stats}
            mutable = ["batch_moments"]
            logits, first = Net().apply(given, real, mutable=mutable)
            others, both = Net().apply({**given, **first}, fake, mutable=mutable)
            collected = both if take == "both" else first
            return gan_loss(logits, others), collected["batch_moments"]

        grads, collected = jax.grad(loss, has_aux=True)(params)
        params = optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, grads))
        return params, jaxbn.move_batch_stats(stats, collected)

    start = variables()
    params, stats = step(start["params"], start["batch_stats"], X, OTHER)
    check(stats["BatchNorm_0"], *((X, OTHER) if take == "both" else (X,)))
    chex.assert_trees_all_equal_structs(stats, start["batch_stats"])
    assert np.all(params["Dense_0"]["kernel"] != start["params"]["Dense_0"]["kernel"])


@pytest.mark.parametrize(
    "take", [pytest.param("both", marks=pytest.mark.exhaustive), "real"]
)
def test_discriminator_in_nnx(take):
    @nnx.jit
    def step(model, optimizer, real, fake):
        def loss(model):
            logits = model(real)
            apart = nnx.view(model, update_running_average=False)
            return gan_loss(logits, (model if take == "both" else apart)(fake))

        with jaxbn.collecting(model):
            grads = nnx.grad(loss)(model)
        optimizer.update(model, grads)

    model = Model()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    step(model, optimizer, X, OTHER)
    check(of_model(model), *((X, OTHER) if take == "both" else (X,)))


def contrastive(a, b):
    return jnp.mean((a - b) ** 2) - jnp.mean((a - b[::-1]) ** 2)


@pytest.mark.exhaustive
def test_siamese_network_in_linen():
    """Two views of each example: one update by both, where there would be two."""
    start = variables()

    @jax.jit
    def step(params, stats, one, two):
        def loss(params):
            given, outputs = {"params": params, "batch_stats": stats}, []
            for view in (one, two):
                output, collected = Net().apply(given, view, mutable=["batch_moments"])
                given = {**given, **collected}
                outputs.append(output)
            return contrastive(*outputs), given["batch_moments"]

        grads, collected = jax.grad(loss, has_aux=True)(params)
        return grads, jaxbn.move_batch_stats(stats, collected)

    grads, stats = step(start["params"], start["batch_stats"], X, OTHER)
    check(stats["BatchNorm_0"], X, OTHER)

    # The gradient is that of two calls in one `apply`, whose statistics move twice.
    def both(params):
        given = {"params": params, "batch_stats": start["batch_stats"]}
        run = lambda model: contrastive(model(X), model(OTHER))  # noqa: E731
        return nn.apply(run, Net(), mutable=["batch_stats"])(given)

    expected, twice = jax.grad(both, has_aux=True)(start["params"])
    chex.assert_trees_all_close(grads, expected, rtol=1e-4, atol=1e-5)
    mean = MOMENTUM * (1 - MOMENTUM) * X.mean(0) + (1 - MOMENTUM) * OTHER.mean(0)
    moved = twice["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(moved, mean, rtol=1e-4, atol=1e-5)


def test_siamese_network_in_nnx():
    @nnx.jit
    def step(model, one, two):
        with jaxbn.collecting(model):
            return nnx.grad(lambda model: contrastive(model(one), model(two)))(model)

    model = Model()
    step(model, X, OTHER)
    check(of_model(model), X, OTHER)


def sharpness_aware(grad_at, params, rho=0.05, rate=0.1):
    """The step of SAM: the gradient at the worst place nearby, in two passes."""
    grads, kept = grad_at(params)
    norm = optax.tree.norm(grads)
    worst = jax.tree.map(lambda p, g: p + rho * g / norm, params, grads)
    grads, dropped = grad_at(worst)
    return jax.tree.map(lambda p, g: p - rate * g, params, grads), kept, dropped


def test_sam_in_linen():
    """The second pass is one of other parameters; only the first one is kept."""

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Net()(nn.Dense(4)(x))

    start = Deep().init(jax.random.key(0), X)

    @jax.jit
    def step(params, stats):
        def loss(params):
            given = {"params": params, "batch_stats": stats}
            y, collected = Deep().apply(given, X, mutable=["batch_moments"])
            return jnp.mean((y - X[:, 0]) ** 2), collected["batch_moments"]

        grad_at = jax.grad(loss, has_aux=True)
        params, kept, dropped = sharpness_aware(grad_at, params)
        move = jaxbn.move_batch_stats
        return params, move(stats, kept), move(stats, dropped)

    params, stats, others = step(start["params"], start["batch_stats"])
    dense = jax.tree.map(
        lambda leaf: np.asarray(leaf, float), start["params"]["Dense_0"]
    )
    check(stats["Net_0"]["BatchNorm_0"], X @ dense["kernel"] + dense["bias"])
    differ = (
        stats["Net_0"]["BatchNorm_0"]["mean"] != others["Net_0"]["BatchNorm_0"]["mean"]
    )
    assert np.all(differ)
    assert np.any(params["Dense_0"]["kernel"] != start["params"]["Dense_0"]["kernel"])


def test_sam_in_nnx():
    """The second pass goes through a view of the model that does not move."""

    class Deep(nnx.Module):
        def __init__(self):
            self.before, self.net = nnx.Linear(4, 4, rngs=nnx.Rngs(1)), Model()

        def __call__(self, x):
            return self.net(self.before(x))

    @nnx.jit
    def step(model):
        def loss(model):
            return jnp.mean((model(X) - X[:, 0]) ** 2)

        start = nnx.clone(nnx.state(model, nnx.Param))
        grads = nnx.grad(loss)(model)
        norm = optax.tree.norm(grads)
        worst = jax.tree.map(lambda p, g: p + 0.05 * g / norm, start, grads)
        nnx.update(model, worst)
        grads = nnx.grad(loss)(nnx.view(model, update_running_average=False))
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, start, grads))

    model = Deep()
    kernel, bias = (
        np.asarray(each[...], float)
        for each in (model.before.kernel, model.before.bias)
    )
    step(model)
    check(of_model(model.net), X @ kernel + bias)
    assert np.any(model.before.kernel[...] != kernel)


def loss_fn(model, batch, train):
    return {"loss": (model(batch["x"]) - batch["x"][:, 0]) ** 2}


def test_multi_steps_of_optax_in_linen():
    """Gradients of k calls make one update, and so do their moments.

    The same parameters and statistics as of one step with `micro_batches=k`.
    """
    k, start = 3, variables()
    tx = optax.MultiSteps(optax.sgd(0.1), k)

    def apply(params, stats, collected, x):
        given = {"params": params, "batch_stats": stats, "batch_moments": collected}
        y, new = Net().apply(given, x, mutable=["batch_moments"])
        return jnp.mean((y - x[:, 0]) ** 2), new["batch_moments"]

    @jax.jit
    def step(params, stats, collected, opt_state, x):
        grad = jax.grad(apply, has_aux=True)
        grads, collected = grad(params, stats, collected, x)
        updates, opt_state = tx.update(grads, opt_state, params)
        params, last = optax.apply_updates(params, updates), tx.has_updated(opt_state)
        choose = lambda new, old: jnp.where(last, new, old)  # noqa: E731
        moved = jaxbn.move_batch_stats(stats, collected)
        stats = jax.tree.map(choose, moved, stats)
        empty = jaxbn.init_batch_moments(stats)
        collected = jax.tree.map(choose, empty, collected)
        return params, stats, collected, opt_state

    given = {name: start[name] for name in ("params", "batch_stats")}
    params, stats = given["params"], given["batch_stats"]
    collected = jaxbn.init_batch_moments(stats)
    opt_state = tx.init(params)
    parts = [X[i::k] for i in range(k)]
    for part in parts:
        chex.assert_trees_all_equal(stats, start["batch_stats"])
        chex.assert_trees_all_equal(params, start["params"])
        params, stats, collected, opt_state = step(
            params, stats, collected, opt_state, part
        )
    check(stats["BatchNorm_0"], X)
    chex.assert_trees_all_equal(collected, jaxbn.init_batch_moments(stats))
    state = training.TrainState.create(Net().apply, given, optax.sgd(0.1))
    accumulating = training.make_train_step(loss_fn, micro_batches=k)
    state, _ = accumulating(state, {"x": X})
    chex.assert_trees_all_close(state.batch_stats, stats, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(state.params, params, rtol=1e-4, atol=1e-6)
    # A second update begins anew.
    for part in np.split(OTHER, k):
        params, stats, collected, opt_state = step(
            params, stats, collected, opt_state, part
        )
    mean = MOMENTUM * (1 - MOMENTUM) * X.mean(0) + (1 - MOMENTUM) * OTHER.mean(0)
    found = stats["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-5)


def test_multi_steps_of_optax_in_nnx():
    """Around k calls of an ordinary step."""
    k, model = 3, Model()
    before = nnx.clone(nnx.state(model, nnx.Param))
    tx = optax.MultiSteps(optax.sgd(0.1), k).gradient_transformation()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step = training.make_nnx_train_step(loss_fn)
    with jaxbn.collecting(model):
        for i in range(k):
            chex.assert_trees_all_equal(nnx.state(model, nnx.Param), before)
            step(model, optimizer, {"x": X[i::k]})
    check(of_model(model), X)
    after = nnx.state(model, nnx.Param)
    assert np.any(after["last"]["kernel"][...] != before["last"]["kernel"][...])
