"""The example policies against the simulation of workers in NumPy."""

import jax
import numpy as np
import pytest

import jaxbn
from experiments.networks import policies as examples
from tests import train_by_policy, workers
from tests.train_by_policy import KERNEL, UNEVEN, WORKERS

POLICIES = {
    examples.Exact(): lambda: workers.Groups(WORKERS),
    examples.Group(2): lambda: workers.Groups(2),
    examples.Local(): lambda: workers.Groups(1),
    examples.Sampled(0.5): lambda: workers.Groups(WORKERS, 0.5),
    examples.Periodic(3): lambda: workers.Periodic(3, WORKERS, "local"),
    examples.Periodic(3, "frozen"): lambda: workers.Periodic(3, WORKERS, "frozen"),
}
# Together the quick ones run every line of the examples that is not a copy.
QUICK = (examples.Group(2), examples.Sampled(0.5), examples.Periodic(3, "frozen"))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 3)).astype(np.float32)


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("style", "policy"),
    [
        pytest.param(
            style,
            policy,
            marks=() if style == "jit" and policy in QUICK else pytest.mark.exhaustive,
        )
        for style in ("jit", "shard_map")
        for policy in POLICIES
    ],
    ids=str,
)
def test_equals_the_simulation(style, policy):
    made = train_by_policy.trained(style, policy, UNEVEN)
    simulation = workers.train(POLICIES[policy](), KERNEL, UNEVEN)
    train_by_policy.assert_equal(made, simulation)


def run(x, policy, stats=None, **options):
    stats = jaxbn.init_batch_stats(3, sync=policy) if stats is None else stats
    return jaxbn.batch_norm_train(x, None, None, stats, sync=policy, **options)


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("fraction", "axis_name", "used"),
    [(0.5, None, 4), (0.6, None, 5), (0.01, None, 1), (0.5, "d", 1), (0.6, "d", 2)],
)
def test_the_number_of_sampled_examples(fraction, axis_name, used):
    """Without workers the whole batch is sampled; on four devices two examples each."""
    policy = examples.Sampled(fraction)
    if axis_name is None:
        y, _ = run(X, policy)
        mask = (np.arange(8) < used)[:, None]
    else:
        normalize = lambda x: run(x, policy, axis_name="d")[0]  # noqa: E731
        y = jax.vmap(normalize, axis_name="d")(X.reshape(4, 2, 3)).reshape(8, 3)
        mask = (np.arange(8) % 2 < used)[:, None]
    right, _ = run(X, None, mask=mask)
    np.testing.assert_allclose(y, right, rtol=1e-5, atol=1e-5)


def test_frozen_moments_stay_finite():
    policy, stats = examples.Periodic(2, "frozen"), None
    for x in (X, X + 1, np.full((8, 3), np.nan, np.float32)):
        _, stats = run(x, policy, stats)
    assert stats is not None
    assert stats.sync["step"] == 1
    np.testing.assert_allclose(stats.sync["mean"], X.mean(0), rtol=1e-5, atol=1e-6)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(stats))


def test_errors():
    for fraction in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="`fraction` must lie in"):
            examples.Sampled(fraction)
    with pytest.raises(ValueError, match="`every` must be at least 1"):
        examples.Periodic(0)
    with pytest.raises(ValueError, match="divides the 4 workers, got 3"):
        run(X, examples.Group(3), group_size=2)
