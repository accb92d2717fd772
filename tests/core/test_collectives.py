"""Statistics over devices: one device with the whole batch is the reference."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxbn
from jaxbn._core import collectives
from tests import reference, styles
from tests.whole_batch import (
    BIAS,
    ROWS,
    SCALE,
    assert_matches,
    grouped_reference,
    make_batch,
    make_masks,
)


@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("style", styles.every())
def test_equals_float64_on_the_whole_batch(style, layer):
    for mask in make_masks().values():
        x, dy = make_batch()
        x, dy = np.where(mask, x, np.nan), np.where(mask, dy, 0).astype(np.float32)
        stats = jaxbn.init_batch_stats(3)
        actual = styles.run(style, x, mask, dy, SCALE, BIAS, stats, layer=layer)
        expected = reference.batch_norm(x, SCALE, BIAS, dy, mask=mask)
        assert_matches(actual, expected, stats, mask)


@pytest.mark.first_case
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("style", ["pmap", "shard_map", "jit Auto"])
def test_many_devices_add_up_sums(style, fast, monkeypatch):
    monkeypatch.setattr(collectives, "MAX_ROWS", 4)
    x, dy = make_batch(loc=1.0 if fast else 1e3)
    mask = make_masks()["empty device"]
    dy = np.where(mask, dy, 0).astype(np.float32)
    stats = jaxbn.init_batch_stats(3)
    actual = styles.run(style, x, mask, dy, SCALE, BIAS, stats)
    expected = reference.batch_norm(x, SCALE, BIAS, dy, mask=mask)
    # At a mean of 1e3 its rounding to float32 is 6e-5.
    assert_matches(actual, expected, stats, mask, atol=1e-5 if fast else 3e-4)


@pytest.mark.parametrize("max_rows", [4, 64])
@pytest.mark.parametrize("style", styles.every())
def test_statistics_at_a_large_mean(style, max_rows, monkeypatch):
    monkeypatch.setattr(collectives, "MAX_ROWS", max_rows)
    x, dy = make_batch(channels=16)
    # Where devices have one mean, float32 means of the devices alone would leave an
    # error of 1e-3 in the variance; where they differ, the mean itself is at stake.
    for far in (1e4 + x - np.round(x), 1e4 + x):
        x = far.astype(np.float32)
        mask, stats = np.ones((len(x), 1), bool), jaxbn.init_batch_stats(16)
        stats = styles.run(
            style, x, mask, dy, np.ones(16), np.zeros(16), stats,
            momentum=0.0, unbiased=False,
        ).stats  # fmt: skip
        expected = reference.moments(x)
        np.testing.assert_allclose(stats.var, expected.var, rtol=1e-4)
        ulp = np.spacing(np.float32(1e4))
        assert np.all(np.abs(stats.mean - expected.mean) <= ulp)


GROUPED = {
    "pairs": ({"group_size": 2}, [[0, 1], [2, 3], [4, 5], [6, 7]]),
    "local": ({"group_size": "local"}, [[i] for i in range(8)]),
    "far apart": (
        {"axis_index_groups": [[0, 3, 5, 6], [1, 2, 4, 7]]},
        [[0, 3, 5, 6], [1, 2, 4, 7]],
    ),
    "all": ({"group_size": 8}, [list(range(8))]),
}

EIGHT_SHARDS = tuple(name for name in styles.MAPPED if name != "data x model")


@pytest.mark.parametrize("groups", GROUPED)
@pytest.mark.parametrize("style", styles.every(EIGHT_SHARDS))
def test_groups_of_devices(style, groups):
    options, devices = GROUPED[groups]
    for name in ("none", "empty device"):
        x, dy = make_batch()
        mask = make_masks()[name]
        dy = np.where(mask, dy, 0).astype(np.float32)
        rows = np.arange(len(x)).reshape(styles.DEVICES, ROWS)
        groups = [np.concatenate(rows[np.array(group)]) for group in devices]
        stats = jaxbn.init_batch_stats(3)
        actual = styles.run(style, x, mask, dy, SCALE, BIAS, stats, **options)
        expected = grouped_reference(x, mask, dy, groups)
        assert_matches(actual, expected, stats, mask)


@pytest.mark.first_case
@pytest.mark.parametrize("loc", [1.0, 1e3])
@pytest.mark.parametrize("style", ["pmap", "shard_map", "shard_map unchecked", "vmap"])
def test_many_devices_alone_add_up_sums(style, loc, monkeypatch):
    monkeypatch.setattr(collectives, "MAX_ROWS", 4)
    mask = make_masks()["empty device"]
    groups = np.arange(styles.DEVICES * ROWS).reshape(styles.DEVICES, ROWS)
    x, dy = make_batch(loc=loc)
    dy = np.where(mask, dy, 0).astype(np.float32)
    stats = jaxbn.init_batch_stats(3)
    actual = styles.run(style, x, mask, dy, SCALE, BIAS, stats, group_size="local")
    expected = grouped_reference(x, mask, dy, groups)
    # As above.
    assert_matches(actual, expected, stats, mask, atol=1e-5 if loc == 1 else 3e-4)


class GroupTest(chex.TestCase):
    @parameterized.product(
        style=("vmap", "shard_map", "jit Explicit"),
        name=("debiased", "window"),
    )
    def test_an_empty_group_counts_nothing(self, style, name):
        """Some groups are masked out; the others are the population."""
        size = {"vmap": 2, "shard_map": 2, "jit Explicit": 4}.get(style, 8)
        x, dy = make_batch(loc=5)
        mask = np.arange(len(x))[:, None] >= 8
        momentum = {} if name in ("cumulative", "window") else {"momentum": 0.5}
        stats = jaxbn.init_batch_stats(3, estimator=name)
        actual = styles.run(
            style, x, mask, np.where(mask, dy, 0).astype(np.float32), SCALE, BIAS,
            stats, estimator=name, group_size=size, **momentum,
        ).stats  # fmt: skip
        batch = x[8:].astype(np.float64)
        mean, var = batch.mean(0), batch.var(0, ddof=1)
        np.testing.assert_allclose(actual.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(actual.var, var, rtol=1e-5)

    def test_forward_mode_within_groups(self):
        x, dx = (a.reshape(8, ROWS, 3) for a in make_batch())
        stats = jaxbn.init_batch_stats(3)

        def split(x):
            return jax.vmap(
                lambda x: jaxbn.batch_norm_train(
                    x, SCALE, BIAS, stats, axis_name="d", group_size=2
                )[0],
                axis_name="d",
            )(x)

        def in_parts(x):
            y, _ = jaxbn.batch_norm_train(
                x.reshape(-1, 3), SCALE, BIAS, stats, group_size=2 * ROWS
            )
            return y.reshape(x.shape)

        actual, expected = (
            jax.jit(lambda x, dx, f=f: jax.jvp(f, (x,), (dx,)))(x, dx)
            for f in (split, in_parts)
        )
        chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


class SyncTest(chex.TestCase):
    def test_complex(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((8, 4, 2)) + 1j * rng.standard_normal((8, 4, 2))
        x = x.astype(np.complex64)
        stats = jaxbn.init_batch_stats(2, jnp.complex64)

        def loss(x, **options):
            y = jaxbn.batch_norm_train(x, None, None, stats, **options)[0]
            return jnp.sum(jnp.abs(y + 1) ** 3)

        mapped = jax.vmap(jax.grad(lambda x: loss(x, axis_name="d")), axis_name="d")
        expected = jax.jit(jax.grad(loss))(x.reshape(-1, 2))
        np.testing.assert_allclose(
            jax.jit(mapped)(x).reshape(-1, 2), expected, atol=1e-5
        )
