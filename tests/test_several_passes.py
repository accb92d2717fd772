"""Recipes for training with several passes of a model and one update of statistics.

Each is written as a user would write it, in Linen and in NNX. The statistics are
compared with those of the first normalisation's input in float64.
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


@pytest.mark.parametrize("take", ["both", "real"])
def test_discriminator_in_linen(take):
    """Real and generated images go through it apart, each by its own statistics."""

    @jax.jit
    def step(params, stats, real, fake):
        def loss(params):
            given = {"params": params, "batch_stats": stats}
            mutable = ["batch_moments"]
            logits, first = Net().apply(given, real, mutable=mutable)
            others, both = Net().apply({**given, **first}, fake, mutable=mutable)
            chosen = both if take == "both" else first
            return gan_loss(logits, others), chosen["batch_moments"]

        grads, moments = jax.grad(loss, has_aux=True)(params)
        params = optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, grads))
        return params, jaxbn.end_accumulation(stats, moments)

    start = variables()
    params, stats = step(start["params"], start["batch_stats"], X, OTHER)
    check(stats["BatchNorm_0"], *((X, OTHER) if take == "both" else (X,)))
    chex.assert_trees_all_equal_structs(stats, start["batch_stats"])
    assert np.all(params["Dense_0"]["kernel"] != start["params"]["Dense_0"]["kernel"])


@pytest.mark.parametrize("take", ["both", "real"])
def test_discriminator_in_nnx(take):
    @nnx.jit
    def step(model, optimizer, real, fake):
        def loss(model):
            logits = model(real)
            apart = nnx.view(model, update_running_average=False)
            return gan_loss(logits, (model if take == "both" else apart)(fake))

        with jaxbn.accumulate(model):
            grads = nnx.grad(loss)(model)
        optimizer.update(model, grads)

    model = Model()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    step(model, optimizer, X, OTHER)
    check(of_model(model), *((X, OTHER) if take == "both" else (X,)))


def contrastive(a, b):
    return jnp.mean((a - b) ** 2) - jnp.mean((a - b[::-1]) ** 2)


def test_siamese_network_in_linen():
    """Two views of each example make one update together, instead of two."""
    start = variables()

    @jax.jit
    def step(params, stats, one, two):
        def loss(params):
            given, outputs = {"params": params, "batch_stats": stats}, []
            for view in (one, two):
                output, moments = Net().apply(given, view, mutable=["batch_moments"])
                given = {**given, **moments}
                outputs.append(output)
            return contrastive(*outputs), given["batch_moments"]

        grads, moments = jax.grad(loss, has_aux=True)(params)
        return grads, jaxbn.end_accumulation(stats, moments)

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
        with jaxbn.accumulate(model):
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
    """The second pass has other parameters; only the first pass counts."""

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Net()(nn.Dense(4)(x))

    start = Deep().init(jax.random.key(0), X)

    @jax.jit
    def step(params, stats):
        def loss(params):
            given = {"params": params, "batch_stats": stats}
            y, moments = Deep().apply(given, X, mutable=["batch_moments"])
            return jnp.mean((y - X[:, 0]) ** 2), moments["batch_moments"]

        grad_at = jax.grad(loss, has_aux=True)
        params, *passes = sharpness_aware(grad_at, params)
        return params, *(jaxbn.end_accumulation(stats, each) for each in passes)

    params, stats, others = step(start["params"], start["batch_stats"])
    dense = jax.tree.map(np.float64, start["params"]["Dense_0"])
    first, second = (each["Net_0"]["BatchNorm_0"] for each in (stats, others))
    check(first, X @ dense["kernel"] + dense["bias"])
    assert np.all(first["mean"] != second["mean"])
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

    Parameters and statistics are those of one step with `micro_batches=k`.
    """
    k, start = 3, variables()
    tx = optax.MultiSteps(optax.sgd(0.1), k)

    def loss(params, stats, moments, x):
        given = {"params": params, "batch_stats": stats, "batch_moments": moments}
        y, new = Net().apply(given, x, mutable=["batch_moments"])
        return jnp.mean((y - x[:, 0]) ** 2), new["batch_moments"]

    @jax.jit
    def step(carry, x):
        params, stats, moments, opt_state = carry
        grads, moments = jax.grad(loss, has_aux=True)(params, stats, moments, x)
        updates, opt_state = tx.update(grads, opt_state, params)
        params, last = optax.apply_updates(params, updates), tx.has_updated(opt_state)
        choose = lambda new, old: jnp.where(last, new, old)  # noqa: E731
        moved = jaxbn.end_accumulation(stats, moments)
        stats = jax.tree.map(choose, moved, stats)
        empty = jaxbn.begin_accumulation(stats)
        return params, stats, jax.tree.map(choose, empty, moments), opt_state

    given = {name: start[name] for name in ("params", "batch_stats")}
    params, stats = given.values()
    carry = params, stats, jaxbn.begin_accumulation(stats), tx.init(params)
    for i in range(k):
        chex.assert_trees_all_equal(carry[:2], (params, stats))  # Nothing has moved.
        carry = step(carry, X[i::k])
    params, stats, moments, _ = carry
    check(stats["BatchNorm_0"], X)
    chex.assert_trees_all_equal(moments, jaxbn.begin_accumulation(stats))
    state = training.TrainState.create(Net().apply, given, optax.sgd(0.1))
    accumulating = training.make_train_step(loss_fn, micro_batches=k)
    state, _ = accumulating(state, {"x": X})
    chex.assert_trees_all_close(state.batch_stats, stats, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(state.params, params, rtol=1e-4, atol=1e-6)
    for part in np.split(OTHER, k):  # A second update begins anew.
        carry = step(carry, part)
    mean = MOMENTUM * (1 - MOMENTUM) * X.mean(0) + (1 - MOMENTUM) * OTHER.mean(0)
    found = carry[1]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-5)


def test_multi_steps_of_optax_in_nnx():
    """Around k calls of an ordinary step."""
    k, model = 3, Model()
    before = nnx.clone(nnx.state(model, nnx.Param))
    tx = optax.MultiSteps(optax.sgd(0.1), k).gradient_transformation()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step = training.make_nnx_train_step(loss_fn)
    with jaxbn.accumulate(model):
        for i in range(k):
            chex.assert_trees_all_equal(nnx.state(model, nnx.Param), before)
            step(model, optimizer, {"x": X[i::k]})
    check(of_model(model), X)
    after = nnx.state(model, nnx.Param)
    assert np.any(after["last"]["kernel"][...] != before["last"]["kernel"][...])
