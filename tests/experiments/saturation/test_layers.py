import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import fully_connected
from experiments.saturation import layers


def make_state(activation, scale, **options):
    model = fully_connected.FullyConnected((6, 5), activation, **options)
    init = jax.jit(lambda key: fully_connected.init_state(model, 9, key, 0.1))
    return model, fully_connected.scaled(init(jax.random.key(0)), scale, 1.0)


def make_batch():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((40, 9)).astype(np.float32)
    return {
        "image": jnp.asarray(image),
        "label": jnp.asarray(rng.integers(10, size=40)),
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_in_float64(activation):
    model, state = make_state(activation, 3.0, norm=None)
    batch = make_batch()
    found = layers.measure(model, state, batch)
    params = jax.tree.map(np.float64, state.params)
    kernels = [params[f"Dense_{i}"]["kernel"] for i in range(3)]
    x, inputs = np.float64(batch["image"]), []
    for kernel in kernels[:2]:
        inputs.append(x @ kernel)
        u = inputs[-1]
        x = np.maximum(u, 0) if activation == "relu" else 1 / (1 + np.exp(-u))
    logits = x @ kernels[2]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    p[np.arange(40), np.asarray(batch["label"])] -= 1
    gradients, above = [], p @ kernels[2].T
    for i in (1, 0):
        s = 1 / (1 + np.exp(-inputs[i]))
        slope = inputs[i] > 0 if activation == "relu" else s * (1 - s)
        gradients.insert(0, above * slope)
        above = gradients[0] @ kernels[i].T
    sizes = [np.sqrt(np.mean(g**2)) for g in gradients]
    idle = [
        u <= 0 if activation == "relu" else (s < 0.05) | (s > 0.95)
        for u in inputs
        for s in [1 / (1 + np.exp(-u))]
    ]
    np.testing.assert_allclose(found["saturated"], [i.mean() for i in idle], rtol=1e-5)
    dead = [i.all(0).mean() for i in idle]
    np.testing.assert_allclose(found["dead"], dead, rtol=1e-5)
    np.testing.assert_allclose(
        found["gradient"], [size / sizes[-1] for size in sizes], rtol=1e-4
    )
    gone = [np.mean(np.abs(g) < 0.01 * sizes[-1]) for g in gradients]
    np.testing.assert_allclose(found["vanished"], gone, rtol=1e-5)


@pytest.mark.exhaustive
def test_normalised_inputs_are_hardly_saturated():
    model, state = make_state("sigmoid", 100.0)
    found = layers.measure(model, state, make_batch())
    assert found["saturated"].max() < 0.03  # Beyond 2.9 standard deviations.
