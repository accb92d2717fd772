import numpy as np

from experiments.whitening import measures


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
