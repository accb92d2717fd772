import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import fully_connected
from experiments.why.saturation import figure, layers, report


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


def make_result(saturated, gradient):
    """Returns a result of two layers and one scale, equal for both activations."""

    def run(network):
        def curve(values):
            return [[[values]], [[values]]]

        return {
            "accuracy": [[None if network == "lost" else 0.5]],
            "saturated": curve([saturated[network]] * 2),
            "dead": curve([0.0, 0.0]),
            "gradient": curve([gradient[network], 1.0]),
            "vanished": curve([0.0, 0.0]),
        }

    names = {"with_bn": "with_bn", "without_bn": "without_bn"}
    return {
        "config": {"activations": ["sigmoid", "relu"], "scales": [1.0], "seeds": 1},
        "steps": [1, 2],
        "runs": {
            f"{name}_{activation}": run(network)
            for name, network in names.items()
            for activation in ("sigmoid", "relu")
        },
    }


def verdicts_of(result):
    lines = report.table(result).split("\n\n")[1].split("\n")[2:]
    return [line.split("**")[1] for line in lines]


def test_as_the_paper_says():
    result = make_result(
        {"with_bn": 0.4, "without_bn": 0.9}, {"with_bn": 1.0, "without_bn": 0.001}
    )
    assert verdicts_of(result) == ["holds"] * 4
    assert figure.draw(result).axes


def test_the_other_way_round():
    result = make_result(
        {"with_bn": 0.9, "without_bn": 0.1}, {"with_bn": 0.001, "without_bn": 1.0}
    )
    assert verdicts_of(result) == ["does not hold here"] * 4


def test_a_divergence_is_named():
    result = make_result(
        {"with_bn": 0.4, "without_bn": 0.9}, {"with_bn": 1.0, "without_bn": 0.001}
    )
    lost = result["runs"]["without_bn_relu"]
    lost["accuracy"] = [[None]]
    for name in ("saturated", "dead", "gradient", "vanished"):
        lost[name] = [[[[None, None]]]] * 2
    assert "| relu, without BN | 1 | diverged |" in report.table(result)
    assert np.isnan(report.curves(result, "without_bn_relu", "dead")).all()
    assert figure.draw(result).axes
