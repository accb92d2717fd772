"""The measures against closed forms."""

import jax.numpy as jnp
import numpy as np

from experiments.covariate_shift import measures

HESSIAN = np.diag([1.0, 2.0, 10.0])


def test_along_the_gradient_of_a_quadratic():
    start = np.array([3.0, -1.0, 0.5])
    gradient = HESSIAN @ start
    rates = np.array([0.01, 0.1, 0.3])

    def loss(x):
        return 0.5 * x @ jnp.asarray(HESSIAN, x.dtype) @ x

    found = measures.along_gradient(loss, jnp.asarray(start), jnp.asarray(rates))
    points = [start - rate * gradient for rate in rates]
    losses = [0.5 * x @ HESSIAN @ x for x in points]
    changes = [np.linalg.norm(HESSIAN @ x - gradient) for x in points]
    norm = np.linalg.norm(gradient)
    expected = {
        "loss_range": max(losses) - min(losses),
        "gradient_change": max(changes),
        "relative_change": max(changes) / norm,
        "smoothness": np.linalg.norm(HESSIAN @ gradient) / norm,
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)  # Float32.


def test_internal_shift_of_a_product():
    x, y, rate = 2.0, 1.0, 0.1
    first, second, third = 0.5, -1.0, 2.0

    def loss(params):
        product = x * jnp.prod(jnp.stack([p["kernel"] for p in params.values()]))
        return 0.5 * jnp.squeeze(product - y) ** 2

    params = {
        name: {"kernel": jnp.array([value])}
        for name, value in (("a", first), ("b", second), ("c", third))
    }
    found = measures.internal_shift(
        loss, params, rate, [["a"], ["b"], ["c"]], ["a", "b", "c"]
    )

    def gradients(a, b, c):
        error = x * a * b * c - y
        return np.array([error * x * b * c, error * x * a * c, error * x * a * b])

    before = gradients(first, second, third)
    a, b, _ = np.array([first, second, third]) - rate * before
    after = [
        before[0],
        gradients(a, second, third)[1],
        gradients(a, b, third)[2],
    ]
    distance = np.abs(after - before) / np.abs(before)
    np.testing.assert_allclose(found["distance"], distance, rtol=1e-5)
    np.testing.assert_allclose(found["cosine"], np.sign(after * before), rtol=1e-5)


def test_other_parts_of_a_layer_move_with_it():
    params = {
        "d0": {"kernel": jnp.array([1.0])},
        "n0": {"scale": jnp.array([1.0])},
        "d1": {"kernel": jnp.array([1.0])},
    }

    def loss(params):
        product = (
            params["d0"]["kernel"] * params["n0"]["scale"] * params["d1"]["kernel"]
        )
        return jnp.squeeze(product)

    found = measures.internal_shift(
        loss, params, 0.1, [["d0", "n0"], ["d1"]], ["d0", "d1"]
    )
    # The gradient of the last is the product of the first two, .9 each after a step.
    np.testing.assert_allclose(found["distance"], [0, 1 - 0.9**2], rtol=1e-5)
