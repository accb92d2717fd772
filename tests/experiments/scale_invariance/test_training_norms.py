import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.scale_invariance import training_norms


def make_batch(examples=40, pixels=9):
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.random((examples, pixels), np.float32)),
        "label": jnp.asarray(rng.integers(10, size=examples)),
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("network", training_norms.NETWORKS)
def test_sum_of_squared_steps_is_that_of_the_weights(network):
    run = training_norms.run(network, "tanh", (8, 8), 9, 0.3, (0.5, 2.0), 40)
    state = jax.jit(run.init)(jax.random.key(0))
    start = state["predicted"]
    np.testing.assert_allclose(start[1] / start[0], 16, rtol=1e-5)
    batch, step, predicted, cosine = make_batch(), jax.jit(run.step), start, 0.0
    for _ in range(3):
        before = kernels(state)
        state = step(state, batch)
        moves = [a - b for a, b in zip(kernels(state), before, strict=True)]
        squares = [np.square(move).sum((1, 2)) for move in moves]
        predicted = predicted + np.stack(squares, 1)
        inner = [
            np.abs((b * move).sum((1, 2)))
            / np.sqrt(np.square(b).sum((1, 2)) * np.square(move).sum((1, 2)))
            for b, move in zip(before, moves, strict=True)
        ]
        cosine = np.maximum(cosine, np.stack(inner, 1))
    found = jax.jit(run.record)(state, batch)
    # Differences of float32 weights: a step is 1e-2 of them.
    np.testing.assert_allclose(found["predicted"], predicted, rtol=1e-5)
    np.testing.assert_allclose(found["angle"], cosine, atol=1e-3)
    norm = np.stack([np.square(k).sum((1, 2)) for k in kernels(state)], 1)
    np.testing.assert_allclose(found["norm"], norm, rtol=1e-5)
    off = np.max(np.abs(found["norm"] / found["predicted"] - 1))
    assert (off < 1e-3) == (network == "with_bn")


def kernels(state):
    params = state["state"].params
    return [np.array(params[f"Dense_{i}"]["kernel"], np.float64) for i in range(2)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("network", training_norms.NETWORKS)
def test_singular_values_are_those_of_the_derivative(network):
    run = training_norms.run(network, "sigmoid", (8, 6), 9, 0.3, (1.0,), 40)
    state = jax.jit(run.init)(jax.random.key(0))
    batch = make_batch()
    found = jax.jit(run.record)(state, batch)["singular"][0, 0]
    params = jax.tree.map(lambda leaf: leaf[0], state["state"].params)
    first = batch["image"] @ params["Dense_0"]["kernel"]
    if network == "with_bn":
        first = (first - first.mean(0)[None]) / jnp.sqrt(first.var(0) + 1e-5)[None]
    kernel = params["Dense_1"]["kernel"]
    second = jax.nn.sigmoid(first) @ kernel
    std = jnp.sqrt(second.var(0) + 1e-5) if network == "with_bn" else jnp.ones(6)
    jacobian = jax.vmap(jax.jacobian(lambda u: jax.nn.sigmoid(u) @ kernel / std))
    values = np.linalg.svd(jacobian(first[:10]), compute_uv=False).mean(0)
    np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-6)
