import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.why.whitening import figure, measures, report, zca


def test_rank_of_few_examples():
    found = measures.others(8, 5)
    assert found["rank"] == 4  # One is spent on the mean.
    # Half of the directions have variance 0 and are divided by epsilon.
    np.testing.assert_allclose(found["variance"]["whitening"], 0.5 / 1e-5, rtol=0.01)


def test_variance_of_others_as_the_inverse_wishart_distribution_says():
    found = measures.others(8, 40, batches=500)["variance"]
    np.testing.assert_allclose(found["whitening"], 40 / (40 - 8 - 2), rtol=0.05)
    np.testing.assert_allclose(found["BN"], 40 / (40 - 3), rtol=0.05)


def test_correlations():
    rng = np.random.default_rng(0)
    u = rng.standard_normal((200, 3))
    x = np.stack([u[:, 0], u[:, 0] + u[:, 1]], 1)  # Their correlation is sqrt(.5).
    found = measures.correlations(x)
    np.testing.assert_allclose(found["none"], np.sqrt(0.5), atol=0.1)
    np.testing.assert_allclose(found["BN"], found["none"], rtol=1e-2)
    assert found["whitening"] < 1e-3


def test_cost():
    found = measures.cost(4, 16)
    assert set(found["ms"]) == set(measures.NORMS)
    both = found["ms"]
    np.testing.assert_allclose(
        found["ratio"], both["whitening"] / both["BN"], rtol=0.02
    )


def make_result(ratio=50.0, rank=15, variance=1e4, whitened=0.3, plain=0.6):
    def run(accuracy, finite=True):
        curve = [[0.2, 0.2], [accuracy, accuracy]]
        return {"accuracy": curve, "finite": [[True, True], [True, finite]]}

    trained = {}
    for size in (16, 256):
        trained[f"BN, {size}"] = run(0.8)
        trained[f"none, {size}"] = run(plain)
        trained[f"whitening, {size}"] = run(whitened if size == 16 else 0.8, size > 16)
    return {
        "config": {"batch_sizes": [16, 256], "hidden": [32, 32]},
        "steps": [1, 2],
        "cost": [{"units": 8, "ms": {"BN": 1.0, "whitening": 9.0}, "ratio": ratio}],
        "few": [
            {
                "examples": examples,
                "rank": rank if examples == 16 else 32,
                "variance": {"BN": 1.1, "whitening": variance},
            }
            for examples in (16, 64)
        ],
        "correlation": {"none": 0.3, "BN": 0.3, "whitening": 0.0},
        "trained": trained,
    }


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({}, None),
        ({"ratio": 3.0}, "whitening is costly"),
        ({"rank": 32}, "with no more examples"),
        ({"variance": 2.0}, "and whitening"),
        ({"whitened": 0.8}, "a network with"),
        ({"plain": 0.9}, "BN speeds up"),
    ],
)
def test_verdicts(changes, claim):
    result = make_result(**changes)
    lines = report.table(result).split("\n\n")[1].split("\n")[2:]
    assert len(lines) == 5
    for line in lines:
        fails = claim is not None and line.startswith(f"| {claim}")
        assert line.endswith("**does not hold here** |" if fails else "**holds** |")
    assert len(figure.draw(result).axes) == 3


def test_table_names_divergence():
    page = report.table(make_result())
    assert "| 16 | whitening | 0.200 | 0.300 | 0.300 to 0.300 | 1 of 2 |" in page
    assert "| 64 | 32 | 1.1 | 1.05 | 1e+04 | 2.13 |" in page


def make_batch(examples=50, units=4):
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((examples, units)) @ rng.standard_normal((units, units))
    return mixed + 3


def test_whitened_in_float64():
    x = make_batch()
    found = np.float64(zca.whiten(jnp.float32(x), 0.0))
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found.T @ found / len(x), np.eye(4), atol=1e-4)
    cov = np.cov(x, rowvar=False, bias=True)
    values, vectors = np.linalg.eigh(cov)
    # The symmetric root: whitened units stay as near to what they were as can be.
    expected = (x - x.mean(0)) @ (vectors / np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_layer_keeps_running_mean_and_covariance():
    x = jnp.float32(make_batch())
    layer = zca.Whitening(momentum=0.0)
    variables = layer.init(jax.random.key(0), x, use_running_average=True)
    y, updates = layer.apply(
        variables, x, use_running_average=False, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(y, zca.whiten(x), atol=1e-4)
    again = layer.apply(variables | updates, x, use_running_average=True)
    np.testing.assert_allclose(again, y, atol=1e-4)
    half = zca.Whitening(momentum=0.5)
    _, updates = half.apply(
        variables, x, use_running_average=False, mutable=["batch_stats"]
    )
    expected = 0.5 * np.eye(4) + 0.5 * np.cov(x, rowvar=False, bias=True)
    np.testing.assert_allclose(updates["batch_stats"]["cov"], expected, rtol=1e-4)
