"""Bugs that other frameworks had or have in synchronised statistics.

Each test computes what the buggy formula gives, shows that it is wrong on these data,
and that ours is right.
"""

import chex
import jax
import numpy as np

import jaxbn
from tests import reference, styles

RNG = np.random.default_rng(0)
DEVICES, ROWS = 8, 4
SCALE, BIAS = np.ones(3, np.float32), np.zeros(3, np.float32)
# Each device has a mean of its own.
X = (RNG.standard_normal((DEVICES, ROWS, 3)) + np.arange(8)[:, None, None]).astype("f4")
DY = RNG.standard_normal(X.shape).astype("f4")
MASK = np.ones((DEVICES, ROWS, 1), bool)
MASK[0, 1:] = MASK[5, :2] = False
EMPTY = MASK.copy()
EMPTY[3] = False


def ours(mask=MASK, **options):
    flat = [a.reshape(-1, a.shape[-1]) for a in (X, mask, np.where(mask, DY, 0))]
    stats = jaxbn.init_batch_stats(3)
    return styles.run("shard_map", *flat, SCALE, BIAS, stats, momentum=0.0, **options)


def truth(mask=MASK):
    return reference.batch_norm(
        X.reshape(-1, 3), SCALE, BIAS, np.where(mask, DY, 0).reshape(-1, 3),
        mask=mask.reshape(-1, 1),
    )  # fmt: skip


def local(mask=MASK):
    return [reference.moments(x, mask=m) for x, m in zip(X, mask, strict=True)]


class KnownBugsTest(chex.TestCase):
    def assert_wrong_and_right(self, buggy, actual, expected):
        assert not np.allclose(buggy, expected, rtol=0.05), "these data show no bug"
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)

    def test_variance_as_mean_of_local_variances(self):
        # tensorflow/tpu 321: leaves out the variance of the local means.
        whole = np.ones_like(MASK)
        buggy = np.mean([m.var for m in local(whole)], 0)
        actual = ours(whole, unbiased=False).stats.var
        self.assert_wrong_and_right(buggy, actual, truth(whole).moments.var)

    def test_mean_of_means_under_masks(self):
        # google/flax 2417: devices with few valid rows count as much as full ones.
        sparse = np.zeros_like(MASK)
        sparse[:, 0] = True
        sparse[6:] = True
        buggy = np.mean([m.mean for m in local(sparse)], 0)
        self.assert_wrong_and_right(
            buggy, ours(sparse).stats.mean, truth(sparse).moments.mean
        )

    def test_gradient_for_unequal_counts(self):
        # pytorch PR 36382: divided the sums of the gradient by equal counts.
        expected = truth()
        x_hat = expected.y
        dy = np.where(MASK, DY, 0).reshape(-1, 3).astype(np.float64)
        rstd = 1 / np.sqrt(expected.moments.var + 1e-5)
        equal = DEVICES * ROWS  # Instead of the valid elements.
        mean_dy, mean_product = dy.sum(0) / equal, (dy * x_hat).sum(0) / equal
        keep = MASK.reshape(-1)
        buggy = rstd * (dy - mean_dy - x_hat * mean_product)
        self.assert_wrong_and_right(buggy[keep], ours().dx[keep], expected.dx[keep])

    def test_unbiased_factor_by_the_local_count(self):
        # pytorch 22192: m / (m - 1) with the elements of one device.
        moments = truth().moments
        buggy = moments.var * ROWS / (ROWS - 1)
        expected = moments.var * moments.count / (moments.count - 1)
        self.assert_wrong_and_right(buggy, ours().stats.var, expected)

    def test_empty_shard_still_joins_and_counts_nothing(self):
        # pytorch PR 74944, flax: 0 / 0 on one device became NaN on all.
        with np.errstate(invalid="ignore"):
            sums = [np.where(m, x, 0).sum(0) for x, m in zip(X, EMPTY, strict=True)]
            buggy = np.mean([s / m.sum() for s, m in zip(sums, EMPTY, strict=True)], 0)
        assert np.all(np.isnan(buggy))
        actual, expected = ours(EMPTY), truth(EMPTY)
        np.testing.assert_allclose(actual.stats.mean, expected.moments.mean, rtol=1e-5)
        np.testing.assert_allclose(actual.dx, expected.dx, atol=1e-5)

    def test_batch_of_one_per_device_is_not_refused(self):
        # apex 262: a count of one on each device is eight on all.
        x = X[:, :1]

        def normalize(x):
            stats = jaxbn.init_batch_stats(3)
            return jaxbn.batch_norm_train(
                x, None, None, stats, axis_name="d", momentum=0.0
            )[1]

        stats = jax.jit(jax.vmap(normalize, axis_name="d"))(x)
        np.testing.assert_allclose(
            stats.var[0], x[:, 0].astype(np.float64).var(0, ddof=1), rtol=1e-5
        )

    def test_averaged_running_variances_at_evaluation(self):
        # A plain pmean of batch_stats, as in many training loops.
        whole = np.ones_like(MASK)
        stats = jaxbn.BatchStats(
            np.float32([m.mean for m in local(whole)]),
            np.float32([m.var for m in local(whole)]),
        )
        merged = jax.vmap(lambda s: jaxbn.sync_batch_stats(s, "d"), axis_name="d")(
            stats
        )
        self.assert_wrong_and_right(
            np.mean(stats.var, 0), merged.var[0], truth(whole).moments.var
        )
