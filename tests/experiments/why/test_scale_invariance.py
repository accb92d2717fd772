import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.why.scale_invariance import figure, layer, report, training_norms


def test_reference_by_numerical_gradients():
    rng = np.random.default_rng(1)
    u, w, dy = rng.standard_normal((3, 6, 6))
    y, du, dw = layer.reference(u, w, dy)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(0), 1)
    step = 1e-6
    for place in ((0, 0), (3, 5)):
        for found, of_u in ((du, True), (dw, False)):
            values = []
            for sign in (1, -1):
                moved_u, moved_w = u.copy(), w.copy()
                (moved_u if of_u else moved_w)[place] += sign * step
                values.append((layer.reference(moved_u, moved_w, dy)[0] * dy).sum())
            slope = (values[0] - values[1]) / (2 * step)
            np.testing.assert_allclose(found[place], slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_identities_hold_without_epsilon(factor):
    found = layer.errors(factor, 0.0)
    assert set(found) == set(layer.QUANTITIES)
    assert max(found.values()) < 1e-6  # Float32 sums of 100 terms.


def test_epsilon_weighs_as_its_share_of_the_variance():
    # Half of epsilon over a variance of 1e-2: the first term of its square root.
    found = layer.errors(0.1, 1e-5)["y"]
    np.testing.assert_allclose(found, 0.5e-3, rtol=0.2)


def make_result(error=1e-7, off=1.0, last=2.0, singular=1.0):
    norm = np.ones((2, 1, 2, 2))  # [records, seeds, scales, layers]
    norm[:, :, 1] = (16.0, last)[0]
    norm[-1, :, 1] = last
    run = {
        "accuracy": [[0.5, 0.6]],
        "norm": norm.tolist(),
        "predicted": (off * norm).tolist(),
        "angle": [[[0.1, 0.1]] * 2],
        "singular": [[[singular, 1.0]]] * 2,
    }
    return {
        "config": {"scales": [1.0, 4.0], "activations": ["relu"], "learning_rate": 1.0},
        "steps": [1, 2],
        "layer": [
            {"factor": 10.0, "epsilon": 0.0, "errors": [error, error, error]},
            {"factor": 0.1, "epsilon": 1e-5, "errors": [1.0, 1.0, 1.0]},
        ],
        "runs": {"with_bn_relu": run, "without_bn_relu": run},
    }


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({}, None),
        ({"error": 1e-3}, "the identities"),
        ({"off": 1.5}, "with BN ‖W‖ grows"),
        ({"last": 9.0}, "with BN the effective"),
        ({"singular": 3.0}, "with BN the singular"),
    ],
)
def test_verdicts(change, claim):
    lines = report.table(make_result(**change)).split("\n\n")[1].split("\n")[2:]
    assert len(lines) == 4
    for line in lines:
        fails = claim is not None and line.startswith(f"| {claim}")
        assert line.endswith("**does not hold here** |" if fails else "**holds** |")


def test_figure_is_drawn():
    assert len(figure.draw(make_result()).axes) == 3


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
