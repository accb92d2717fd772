"""Tests that these policies equal other arguments of the library."""

import chex
import jax
import numpy as np
import pytest

import jaxbn
from jaxbn import sync_policies

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)


def run(x=X, **options):
    return jaxbn.batch_norm_train(x, None, None, jaxbn.init_batch_stats(3), **options)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (sync_policies.Exact(), {}),
        (sync_policies.Local(), {"group_size": 2}),
        (sync_policies.Group(1), {"group_size": 2}),
        (sync_policies.Group(2), {"group_size": 4}),
        (sync_policies.Group(4), {}),
        (sync_policies.Sampled(1.0), {}),
        (sync_policies.Sampled(0.5), {"mask": (np.arange(8) % 2 == 0)[:, None]}),
    ],
    ids=repr,
)
def test_in_other_words(policy, options):
    y, stats = run(group_size=2, sync=policy)
    expected, expected_stats = run(**options)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(stats, expected_stats, rtol=1e-6, atol=1e-7)


def test_local_running_statistics_are_those_of_all():
    def mapped(**options):
        def one(x):
            return run(x, axis_name="d", **options)

        return jax.vmap(one, axis_name="d")(X.reshape(4, 2, 3))

    made, expected = mapped(sync=sync_policies.Local()), mapped(group_size="local")
    chex.assert_trees_all_equal(made, expected)
    of_parts = run(group_size=2)[1]
    for stats, part in zip(made[1], of_parts, strict=True):
        np.testing.assert_allclose(stats, np.stack([part] * 4), rtol=1e-5, atol=1e-6)


def test_without_workers():
    chex.assert_trees_all_equal(run(sync=sync_policies.Exact()), run())
    y, _ = run(sync=sync_policies.Sampled(0.25))
    expected, _ = run(mask=(np.arange(8) < 2)[:, None])
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("size", [0, -1, True, 2.0])
def test_size_of_a_group(size):
    with pytest.raises((ValueError, TypeError), match="`size` must be"):
        sync_policies.Group(size)


@pytest.mark.parametrize("fraction", [0, 1.5, float("nan")])
def test_fraction(fraction):
    with pytest.raises(ValueError, match="`fraction` must lie in"):
        sync_policies.Sampled(fraction)
