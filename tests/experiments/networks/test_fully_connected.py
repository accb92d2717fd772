import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import fully_connected, norms
from jaxbn import training

PIXELS = 16
HIDDEN = (7, 5)
NUMPY = {
    "sigmoid": lambda u: 1 / (1 + np.exp(-u)),
    "tanh": np.tanh,
    "relu": lambda u: np.maximum(u, 0),
}


def make_split(examples=30):
    rng = np.random.default_rng(0)
    return {
        "image": rng.random((examples, PIXELS), np.float32),
        "label": rng.integers(10, size=examples),
    }


def reference(params, x, activation, normalise):
    """Logits and inputs of the nonlinearities in float64."""
    x, inputs = np.float64(x), []
    layers = [
        {name: np.float64(leaf) for name, leaf in params[f"Dense_{i}"].items()}
        for i in range(len(HIDDEN) + 1)
    ]
    for layer in layers[:-1]:
        u = x @ layer["kernel"] + layer.get("bias", 0.0)
        if normalise:
            u = (u - u.mean(0)) / np.sqrt(u.var(0) + 1e-5)
        inputs.append(u)
        x = NUMPY[activation](u)
    return x @ layers[-1]["kernel"] + layers[-1]["bias"], inputs


@pytest.mark.exhaustive
@pytest.mark.parametrize("activation", list(NUMPY))
@pytest.mark.parametrize("batch_norm", [True, False])
def test_logits_and_inputs_in_float64(activation, batch_norm):
    options = {} if batch_norm else {"norm": None}
    model = fully_connected.FullyConnected(HIDDEN, activation, **options)
    images = make_split()["image"]
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), images)
    found, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    expected = reference(variables["params"], images, activation, batch_norm)
    # Float32 sums of 16 terms; normalisation divides rounding by a std of about .2.
    chex.assert_trees_all_close(
        found, (expected[0], tuple(expected[1])), rtol=1e-4, atol=1e-5
    )


def test_any_normalisation():
    norm = functools.partial(norms.Apart, norms.NoNorm)
    model = fully_connected.FullyConnected(HIDDEN, norm=norm)
    init = functools.partial(model.init, train=False)
    made = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, PIXELS)))
    assert set(made["params"]["Apart_0"]["NoNorm_0"]) == {"scale", "bias"}


def init_state(model, pixels=PIXELS, rate=0.1):
    init = functools.partial(fully_connected.init_state, model, pixels)
    return jax.jit(init)(jax.random.key(0), rate)


def test_normalised_after_the_nonlinearity():
    model = fully_connected.FullyConnected((6,), "relu", norm_after=True)
    images = jnp.asarray(make_split()["image"])
    params = model.init(jax.random.key(0), images, train=False)["params"]
    logits = model.apply({"params": params}, images, True, mutable=["batch_stats"])
    dense, last = (jax.tree.map(np.float64, params[f"Dense_{i}"]) for i in range(2))
    x = np.maximum(np.float64(images) @ dense["kernel"] + dense["bias"], 0)
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    expected = x @ last["kernel"] + last["bias"]
    # Float32 rounding; sums of 30 and 16 terms.
    np.testing.assert_allclose(logits[0][0], expected, atol=1e-4)


def test_dropout_leaves_out_its_share():
    model = fully_connected.FullyConnected((4000,), "relu", norm=None)
    images = jnp.ones((2, 5))
    variables = model.init(jax.random.key(0), images, train=False)
    # The last layer adds up what is left: the kernel of ones counts it.
    params = {**variables["params"]}
    params["Dense_0"] = {"kernel": jnp.zeros((5, 4000)), "bias": jnp.ones(4000)}
    params["Dense_1"] = {"kernel": jnp.ones((4000, 10)), "bias": jnp.zeros(10)}

    def total(train, rate, key=0):
        logits, _ = model.apply(
            {"params": params}, images, train, dropout=rate,
            rngs={"dropout": jax.random.key(key)},
        )  # fmt: skip
        return logits

    kept = 4000 * 0.6 / 0.6
    assert abs(total(True, 0.4)[0, 0] / kept - 1) < 0.05  # Its own error is .013.
    assert not np.array_equal(total(True, 0.4), total(True, 0.4, key=1))
    np.testing.assert_allclose(total(True, 0.0), 4000)
    np.testing.assert_allclose(total(False, 0.4), 4000)


class TestInitState:
    def test_customary_weights(self):
        for activation, variance in (("relu", 2 / 784), ("sigmoid", 2 / (784 + 300))):
            model = fully_connected.FullyConnected((300,), activation)
            state = init_state(model, 784)
            found = jnp.var(state.params["Dense_0"]["kernel"])
            assert abs(found / variance - 1) < 0.05

    @pytest.mark.exhaustive
    def test_step_of_plain_sgd(self):
        model = fully_connected.FullyConnected(HIDDEN, norm=None)
        state = init_state(model, rate=0.25)
        batch = make_split()

        def loss(params):
            bound = model.bind({"params": params})
            return fully_connected.loss_fn(bound, batch, True)["loss"].mean()

        gradient = jax.grad(loss)(state.params)
        expected = jax.tree.map(lambda p, g: p - 0.25 * g, state.params, gradient)
        train_step = training.make_train_step(fully_connected.loss_fn)
        chex.assert_trees_all_close(
            train_step(state, batch)[0].params, expected, rtol=1e-6, atol=1e-7
        )


def test_scaled():
    state = init_state(fully_connected.FullyConnected(HIDDEN, norm=None))
    found = jax.jit(fully_connected.scaled)(state, 3.0, 0.5).params
    for name, factor in (("Dense_0", 3.0), ("Dense_1", 3.0), ("Dense_2", 0.5)):
        kernel = state.params[name]["kernel"]
        np.testing.assert_allclose(found[name]["kernel"], factor * kernel)
        chex.assert_trees_all_equal(found[name]["bias"], state.params[name]["bias"])


def test_gradient_by_the_offsets_is_that_by_the_inputs():
    model = fully_connected.FullyConnected(HIDDEN, "tanh", norm=None)
    state, images = init_state(model), jnp.asarray(make_split()["image"])

    def logit(offsets):
        logits, inputs = model.apply({"params": state.params}, images, True, offsets)
        return logits[:, 0].sum(), inputs

    zeros = [jnp.zeros((30, units)) for units in HIDDEN]
    gradients, inputs = jax.grad(logit, has_aux=True)(zeros)
    kernels = [state.params[f"Dense_{i}"]["kernel"] for i in range(3)]
    last = (1 - jnp.tanh(inputs[1]) ** 2) * kernels[2][None, :, 0]
    first = (1 - jnp.tanh(inputs[0]) ** 2) * (last @ kernels[1].T)
    chex.assert_trees_all_close(gradients, [first, last], rtol=1e-4, atol=1e-6)


class TestEvaluate:
    @pytest.mark.exhaustive
    def test_by_the_running_statistics(self):
        model = fully_connected.FullyConnected(HIDDEN)
        state = init_state(model)
        split = make_split()
        # At their initial values, mean 0 and variance 1, they only divide by epsilon.
        logits, _ = reference(state.params, split["image"], "sigmoid", False)
        shifted = logits - logits.max(-1, keepdims=True)
        p = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
        found = fully_connected.evaluate(state, split)
        accuracy = np.mean(logits.argmax(-1) == split["label"])
        np.testing.assert_allclose(found["accuracy"], accuracy, rtol=1e-6)
        expected = -np.log(p[np.arange(30), split["label"]]).mean()
        np.testing.assert_allclose(found["loss"], expected, rtol=1e-4)
        assert found["finite"]

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_diverged(self, value):
        model = fully_connected.FullyConnected(HIDDEN, kernel_init=nn.initializers.ones)
        state = init_state(model)
        params = dict(state.params)
        params["Dense_1"] = {"kernel": params["Dense_1"]["kernel"].at[0, 0].set(value)}
        found = fully_connected.evaluate(state.replace(params=params), make_split())
        assert not found["finite"]
