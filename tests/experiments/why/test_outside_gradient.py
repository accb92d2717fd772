import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.why.outside_gradient import figure, layers, report


def test_the_closed_form_of_the_paper():
    found = layers.train("centred outside", 0.1, 50)
    # Every step adds the rate times the mean of the targets, which is 1.
    np.testing.assert_allclose(found["bias"], 0.1 * np.arange(51), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["scale"], 1)
    # Half of the mean of (u / 2 - 1)^2, where u has mean 0 and variance 1.
    np.testing.assert_allclose(found["loss"], 0.625, rtol=1e-5)


def test_scaled_outside_in_float64():
    found = layers.train("centred and scaled outside", 0.1, 5)
    u = np.float64(layers.inputs())
    scale, bias = 1.0, 0.0
    for step in range(5):
        np.testing.assert_allclose(found["scale"][step], scale, rtol=1e-4)
        np.testing.assert_allclose(found["bias"][step], bias, rtol=1e-4, atol=1e-6)
        x = scale * u + bias
        std = np.sqrt(x.var() + 1e-5)
        error = (x - x.mean()) / std - (u / 2 + 1)
        scale -= 0.1 * (error * u).mean() / std
        bias -= 0.1 * error.mean() / std


def test_seen_by_the_gradient_nothing_moves():
    for variant in ("BN", "centred inside"):
        found = layers.train(variant, 0.5, 20)
        assert np.abs(found["bias"]).max() < 1e-5


@pytest.mark.parametrize("variant", list(layers.VARIANTS))
def test_all_variants_put_out_normalised_values(variant):
    x = 3 + 2 * np.random.default_rng(0).standard_normal((20, 4))
    module = layers.Normalisation(variant)
    bias = np.arange(4.0, dtype=np.float32)
    y = module.apply({"params": {"bias": bias}}, jnp.float32(x), False)
    expected = x - x.mean(0)
    if layers.VARIANTS[variant][0]:
        expected /= x.std(0)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", list(layers.VARIANTS))
def test_the_gradient_by_the_bias_is_zero_where_it_is_seen(variant):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((20, 4)), jnp.float32)
    module = layers.Normalisation(variant)

    def loss(bias):
        return module.apply({"params": {"bias": bias}}, x, False)[:5].sum()

    gradient = jax.grad(loss)(jnp.zeros(4))
    std = np.asarray(x).std(0) if layers.VARIANTS[variant][0] else 1.0
    expected = 0.0 if layers.VARIANTS[variant][1] else 5 / std
    np.testing.assert_allclose(gradient, expected * np.ones(4), atol=1e-4)


def make_result(**changes):
    """Returns a result of three records that agrees with the paper, plus `changes`."""
    unit = {
        "BN": {"bias": [0.0] * 4, "scale": [1.0] * 4, "loss": [0.6] * 4},
        "centred outside": {
            "bias": [0.0, 1.0, 2.0, changes.get("grown", 3.0)],
            "scale": [1.0] * 4,
            "loss": [0.6, 0.6, 0.6, changes.get("loss", 0.6)],
        },
    }
    unit["centred inside"] = unit["BN"]
    worse = {"bias": [0.0, 5.0, 7.0, changes.get("worse", 9.0)]}
    unit["centred and scaled outside"] = unit["BN"] | worse

    def network(biases, finite=True):
        return {
            "bias": [[each] for each in biases],
            "loss": [[0.5], [0.4], [0.3 if finite else None]],
            "accuracy": [[0.5], [0.6], [0.7]],
            "finite": [[True], [True], [finite]],
        }

    return {
        "config": {"learning_rate": 1.0, "steps": 3},
        "steps": [1, 2, 3],
        "target_mean": 1.0,
        "unit": unit,
        "networks": {
            "BN": network([0.0, 0.0, changes.get("bn", 0.0)]),
            "centred inside": network([0.0] * 3),
            "centred outside": network(
                [1.0, 2.0, changes.get("network")], changes.get("finite", False)
            ),
            "centred and scaled outside": network([1.0, 2.0, None], finite=False),
        },
    }


@pytest.mark.parametrize(
    ("changes", "claim", "verdict"),
    [
        ({}, None, None),
        ({"grown": 2.5}, "centred outside", "does not hold here"),
        ({"loss": 0.3}, "while its loss", "does not hold here"),
        ({"worse": 2.0}, "scaled outside too", "holds partly"),
        ({"network": 1.5}, "in a network", "holds partly"),
        ({"network": 3.0, "finite": True}, "and it blows up", "holds partly"),
        ({"bn": 1.0}, "with BN neither", "holds partly"),
    ],
)
def test_verdicts(changes, claim, verdict):
    result = make_result(**changes)
    lines = report.table(result).split("\n\n")[1].split("\n")[2:]
    assert len(lines) == 6
    assert len(figure.draw(result).axes) == 3
    for line in lines:
        fails = claim is not None and line.startswith(f"| {claim}")
        assert line.endswith(f"**{verdict if fails else 'holds'}** |"), line
    assert set(layers.VARIANTS) == set(result["unit"])
