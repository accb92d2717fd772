"""The collection `batch_moments` of Linen models."""

import subprocess
import sys

import chex
import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import estimators, linen, training
from jaxbn._layers import accumulation

X = 3 + np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)


class Net(nn.Module):
    """A layer used twice, one with its own momentum, one that is frozen."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=True):
        options = {"use_running_average": not train, "axis_name": self.axis_name}
        twice = linen.BatchNorm(momentum=0.5, name="twice", **options)
        x = twice(2 * twice(x) + 1)
        x = linen.BatchNorm(estimator="debiased", name="other", **options)(x)
        return linen.BatchNorm(
            True, update_running_average=False, name="frozen", axis_name=self.axis_name
        )(x)


def init():
    variables = Net().init(jax.random.key(0), X)
    _, updates = Net().apply(variables, X[::-1] ** 2, mutable=["batch_stats"])
    return variables | updates


def collect(variables, parts):
    for part in parts:
        _, collected = Net().apply(variables, part, mutable=["batch_moments"])
        variables = variables | collected
    return variables["batch_moments"]


def test_parts_of_a_batch_make_one_update_of_the_whole():
    layer = linen.BatchNorm(False, momentum=0.9)
    variables = layer.init(jax.random.key(0), X)
    _, expected = layer.apply(variables, X, mutable=["batch_stats"])
    given = dict(variables)
    for part in (X[:2], X[2:5], X[5:]):
        _, collected = layer.apply(given, part, mutable=["batch_moments"])
        given |= collected
    moved = jaxbn.end_accumulation(given["batch_stats"], given["batch_moments"])
    chex.assert_trees_all_close(moved, expected["batch_stats"], rtol=1e-5)
    chex.assert_trees_all_equal(given["batch_stats"], variables["batch_stats"])
    (whole,) = accumulation.moments_of(given["batch_moments"]).values()
    chex.assert_trees_all_close(whole[:3], jaxbn.batch_moments(X)[:3], rtol=1e-5)


def test_each_layer_moves_as_it_does_in_training():
    variables = init()
    collected = collect(variables, [X])
    assert set(collected) == {"twice", "other"}
    moved = jaxbn.end_accumulation(variables["batch_stats"], collected)
    _, expected = Net().apply(variables, X, mutable=["batch_stats"])
    chex.assert_trees_all_equal_structs(moved, variables["batch_stats"])
    chex.assert_trees_all_close(
        moved["other"], expected["batch_stats"]["other"], rtol=1e-5
    )
    chex.assert_trees_all_equal(moved["frozen"], variables["batch_stats"]["frozen"])
    # Used twice, it moves once, by both inputs together.
    twice = accumulation.moments_of(collected)[("twice",)]
    np.testing.assert_array_equal(twice.count, 32)
    old = variables["batch_stats"]["twice"]["mean"]
    np.testing.assert_allclose(
        moved["twice"]["mean"], 0.5 * old + 0.5 * twice.mean, rtol=1e-6
    )


def test_containers_stay_and_init_makes_no_collection():
    variables = init()
    assert set(variables) == {"params", "batch_stats"}
    frozen = flax.core.freeze(variables["batch_stats"])
    moved = jaxbn.end_accumulation(frozen, collect(variables, [X]))
    assert isinstance(moved, flax.core.FrozenDict)


@pytest.mark.parametrize("mutable", [True, flax.core.DenyList("params")], ids=str)
def test_a_blanket_permission_is_no_request(mutable):
    """The running statistics move as with Flax's layer."""
    layer = linen.BatchNorm(False)
    variables = layer.init(jax.random.key(0), X)
    _, updates = layer.apply(variables, X, mutable=mutable)
    _, expected = layer.apply(variables, X, mutable=["batch_stats"])
    assert "batch_moments" not in updates
    chex.assert_trees_all_equal(updates["batch_stats"], expected["batch_stats"])
    assert np.all(updates["batch_stats"]["mean"] != 0)


def test_under_scan_from_zeros():
    variables = init()

    def one_pass(collected, part):
        given = variables | {"batch_moments": collected}
        _, made = Net().apply(given, part, mutable=["batch_moments"])
        return made["batch_moments"], None

    zeros = jaxbn.begin_accumulation(variables["batch_stats"])
    parts = X.reshape(4, 4, 4)
    scanned, _ = jax.jit(lambda z: jax.lax.scan(one_pass, z, parts))(zeros)
    chex.assert_trees_all_equal(scanned.pop("frozen"), zeros["frozen"])
    chex.assert_trees_all_close(
        scanned, collect(variables, parts), rtol=1e-5, atol=1e-6
    )


def test_over_devices():
    variables = init()

    def on_device(part):
        net = Net(axis_name="d")
        return net.apply(variables, part, mutable=["batch_moments"])[1]

    mapped = jax.jit(jax.vmap(on_device, axis_name="d"))(X.reshape(4, 4, 4))
    each = jax.tree.map(lambda leaf: leaf[0], mapped["batch_moments"])
    chex.assert_trees_all_close(each, collect(variables, [X]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", [estimators.ema(0.0), estimators.window(3)])
def test_gan_takes_both_halves_or_the_first(estimator):
    """Generated and real images in one network: merge, or take one of them."""
    layer = linen.BatchNorm(False, estimator=estimator)
    real, fake = X[:8], 5 * X[8:]
    variables = layer.init(jax.random.key(0), real)
    _, first = layer.apply(variables, real, mutable=["batch_moments"])
    _, both = layer.apply(variables | first, fake, mutable=["batch_moments"])
    for collected, data in ((first, real), (both, np.concatenate([real, fake]))):
        moved = jaxbn.end_accumulation(
            variables["batch_stats"], collected["batch_moments"]
        )
        np.testing.assert_allclose(moved["mean"], data.mean(0), rtol=1e-5)
        np.testing.assert_allclose(moved["var"], data.var(0, ddof=1), rtol=1e-4)


def test_sam_moves_by_the_first_pass_only():
    layer = linen.BatchNorm(False)
    variables = layer.init(jax.random.key(0), X)
    _, second = layer.apply(variables, 7 * X, mutable=["batch_moments"])
    assert set(second) == {"batch_moments"}  # Dropped: nothing moved.


@pytest.mark.exhaustive
def test_remat_collects_once():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return linen.BatchNorm(False)(nn.Dense(4)(x))

    results = []
    for block in (Block, nn.remat(Block)):
        variables = block().init(jax.random.key(0), X)

        def loss(params, block=block, variables=variables):
            y, collected = block().apply(
                variables | {"params": params}, X, mutable=["batch_moments"]
            )
            return jnp.sum(y**3), collected

        gradient = jax.jit(jax.grad(loss, has_aux=True))
        results.append(gradient(variables["params"]))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)


def test_the_function_needs_no_flax():
    code = "import jaxbn, sys; print('flax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False"


COMPLEX = (X + 5j).astype(np.complex64)


@pytest.mark.first_case
@pytest.mark.parametrize("tool", ["collected", "accumulated", "recalibrated"])
def test_complex_batches_of_a_layer_with_real_statistics(tool):
    """As the checkpoint of a layer that had seen real batches alone."""
    layer = linen.BatchNorm(False, momentum=0.0)
    variables = layer.init(jax.random.key(0), X)
    if tool == "collected":
        stats = variables["batch_stats"]
        given = variables | {"batch_moments": jaxbn.begin_accumulation(stats)}
        _, made = layer.apply(given, COMPLEX, mutable=["batch_moments"])
        mean = jaxbn.end_accumulation(stats, made["batch_moments"])["mean"]
    elif tool == "accumulated":
        state = training.TrainState.create(layer.apply, variables, optax.sgd(0.0))
        loss_fn = lambda model, batch, train: {  # noqa: E731
            "loss": jnp.sum(jnp.abs(model(batch["x"])), -1)
        }
        step = training.make_train_step(loss_fn, micro_batches=2)
        mean = step(state, {"x": COMPLEX})[0].batch_stats["mean"]
    else:
        new = jaxbn.recalibrate(layer, variables, [COMPLEX], lambda layer, x: layer(x))
        mean = new["batch_stats"]["mean"]
    np.testing.assert_allclose(mean, COMPLEX.mean(0), rtol=1e-5)


def test_complex_batches_of_an_nnx_layer():
    layer = jaxbn.nnx.BatchNorm(4, momentum=0.0, rngs=nnx.Rngs(0))
    new = jaxbn.recalibrate(layer, None, [COMPLEX], lambda layer, x: layer(x))
    np.testing.assert_allclose(new.mean[...], COMPLEX.mean(0), rtol=1e-5)
    with jaxbn.accumulate(layer):
        layer(COMPLEX)
    np.testing.assert_allclose(layer.mean[...], COMPLEX.mean(0), rtol=1e-5)


@pytest.mark.parametrize("name", ["ema", "debiased", "cumulative", "window"])
def test_passes_of_one_layer_make_one_update_by_the_whole(name):
    estimator = estimators.as_estimator(name)
    parts = np.split(100 + X[:8], (3, 5))
    start = estimator.update(estimator.init(4, jnp.float32), jaxbn.batch_moments(-X))
    before, passed = None, accumulation.nothing_yet(start)
    for part in parts:
        batch = jaxbn.batch_moments(part)
        passed = accumulation.add(estimator, start, before, batch, "bn")
        before = passed.moments
    whole = jaxbn.batch_moments(100 + X[:8])
    expected = estimator.update(start, whole)
    chex.assert_trees_all_close(passed.batch_stats, expected, rtol=1e-5)
    empty = jaxbn.batch_moments(jnp.ones((0, 4)))
    nothing = accumulation.add(estimator, start, None, empty, "bn")
    chex.assert_trees_all_equal(nothing.batch_stats, start)


def test_passes_under_scan_without_a_gradient():
    estimator = estimators.ema()
    start = estimator.init(4, jnp.float32)

    @jax.jit
    def scanned(x):
        def body(passed, x):
            batch = jaxbn.batch_moments(x)
            return accumulation.add(estimator, start, passed.moments, batch, "bn"), None

        return jax.lax.scan(body, accumulation.nothing_yet(start), x)[0]

    x = X.reshape(4, 4, 4)
    passed = scanned(x)
    whole = jaxbn.batch_moments(X)
    chex.assert_trees_all_close(passed.moments[:3], whole[:3], rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(scanned(x).moments.mean))(x)
    np.testing.assert_array_equal(gradient, 0)
