"""Statistics over devices: one device with the whole batch is the reference."""

from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxbn
from jaxbn import testing
from jaxbn.core import sync
from tests import reference, styles

ROWS = 4  # Per device.
SCALE, BIAS = np.float32([1, 2, 0.5]), np.float32([0, 1, -1])


def make_masks():
    full = np.ones((styles.DEVICES, ROWS, 1), bool)
    equal = full.copy()
    equal[:, 2:] = False
    uneven = full.copy()
    uneven[0, 1:] = False  # One valid row here, up to four elsewhere.
    uneven[3, :2] = False
    empty = uneven.copy()
    empty[5] = False
    return {
        name: mask.reshape(-1, 1)
        for name, mask in (
            ("none", full),
            ("equal", equal),
            ("uneven", uneven),
            ("empty device", empty),
        )
    }


def make_batch(loc=0.0, channels=3):
    rng = np.random.default_rng(0)
    # Each device has a mean of its own: a mean of means would be wrong.
    shift = np.repeat(np.arange(styles.DEVICES), ROWS)[:, None]
    shape = (styles.DEVICES * ROWS, channels)
    x = (loc + shift + rng.standard_normal(shape)).astype(np.float32)
    return x, rng.standard_normal(shape).astype(np.float32)


def assert_matches(actual, expected, stats, keep, atol=1e-5):
    """1e-5 relative to scale: float32 rounding of sums of 32 values of order 1."""
    keep = np.broadcast_to(keep, actual.y.shape)
    np.testing.assert_allclose(
        np.asarray(actual.y)[keep], expected.y[keep], rtol=1e-5, atol=atol
    )
    np.testing.assert_allclose(actual.dx, expected.dx, rtol=1e-5, atol=atol)
    # Sums over the batch.
    np.testing.assert_allclose(actual.dscale, expected.dscale, atol=10 * atol)
    np.testing.assert_allclose(actual.dbias, expected.dbias, atol=10 * atol)
    mean, var = reference.updated(stats, expected.moments)
    np.testing.assert_allclose(actual.stats.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(actual.stats.var, var, rtol=1e-5)


class EveryStyleTest(chex.TestCase):
    @parameterized.product(
        style=tuple(styles.ALL), mask=tuple(make_masks()), layer=(False, True)
    )
    def test_equals_float64_on_the_whole_batch(self, style, mask, layer):
        x, dy = make_batch()
        mask = make_masks()[mask]
        x, dy = np.where(mask, x, np.nan), np.where(mask, dy, 0).astype(np.float32)
        stats = jaxbn.init_batch_stats(3)
        actual = styles.ALL[style](x, mask, dy, SCALE, BIAS, stats, layer=layer)
        expected = reference.batch_norm(x, SCALE, BIAS, dy, mask=mask)
        assert_matches(actual, expected, stats, mask)

    @parameterized.product(style=("pmap", "shard_map", "jit Auto"), fast=(True, False))
    def test_many_devices_add_up_sums(self, style, fast):
        x, dy = make_batch(loc=1.0 if fast else 1e3)
        mask = make_masks()["empty device"]
        dy = np.where(mask, dy, 0).astype(np.float32)
        stats = jaxbn.init_batch_stats(3)
        limit, sync.MAX_ROWS = sync.MAX_ROWS, 4
        try:
            actual = styles.ALL[style](x, mask, dy, SCALE, BIAS, stats)
        finally:
            sync.MAX_ROWS = limit
        expected = reference.batch_norm(x, SCALE, BIAS, dy, mask=mask)
        # At a mean of 1e3 its rounding to float32 is 6e-5.
        assert_matches(actual, expected, stats, mask, atol=1e-5 if fast else 3e-4)

    @parameterized.product(style=tuple(styles.ALL), max_rows=(4, 64))
    def test_variance_at_a_large_mean(self, style, max_rows):
        # Float32 means of the devices alone would leave an error of 1e-3 here.
        x, dy = make_batch(channels=16)
        x = (1e4 + x - np.round(x)).astype(np.float32)
        stats = jaxbn.init_batch_stats(16)
        limit, sync.MAX_ROWS = sync.MAX_ROWS, max_rows
        try:
            actual = styles.ALL[style](
                x, np.ones((len(x), 1), bool), dy, np.ones(16), np.zeros(16), stats,
                momentum=0.0, unbiased=False,
            )  # fmt: skip
        finally:
            sync.MAX_ROWS = limit
        np.testing.assert_allclose(
            actual.stats.var, reference.moments(x).var, rtol=1e-4
        )

    @parameterized.product(style=tuple(styles.ALL), max_rows=(4, 64))
    def test_mean_at_a_large_mean(self, style, max_rows):
        x, dy = make_batch(channels=16)
        x = (1e4 + x).astype(np.float32)
        stats = jaxbn.init_batch_stats(16)
        with mock.patch.object(sync, "MAX_ROWS", max_rows):
            actual = styles.ALL[style](
                x, np.ones((len(x), 1), bool), dy, np.ones(16), np.zeros(16), stats,
                momentum=0.0,
            )  # fmt: skip
        exact = x.astype(np.float64).mean(0)
        assert np.all(np.abs(actual.stats.mean - exact) <= np.spacing(np.float32(1e4)))


def grouped_reference(x, mask, dy, groups):
    """Each group, a list of rows, by itself."""
    parts = [
        reference.batch_norm(x[g], SCALE, BIAS, dy[g], mask=mask[g]) for g in groups
    ]
    order = np.argsort(np.concatenate(groups))
    return reference.Result(
        y=np.concatenate([part.y for part in parts])[order],
        moments=reference.moments(x, mask=mask),
        dx=np.concatenate([part.dx for part in parts])[order],
        dscale=sum(part.dscale for part in parts),
        dbias=sum(part.dbias for part in parts),
    )


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


class GroupTest(chex.TestCase):
    @parameterized.product(
        style=EIGHT_SHARDS, groups=tuple(GROUPED), mask=("none", "empty device")
    )
    def test_groups_of_devices(self, style, groups, mask):
        x, dy = make_batch()
        mask = make_masks()[mask]
        dy = np.where(mask, dy, 0).astype(np.float32)
        options, devices = GROUPED[groups]
        rows = np.arange(len(x)).reshape(styles.DEVICES, ROWS)
        groups = [np.concatenate(rows[np.array(group)]) for group in devices]
        stats = jaxbn.init_batch_stats(3)
        actual = styles.ALL[style](x, mask, dy, SCALE, BIAS, stats, **options)
        expected = grouped_reference(x, mask, dy, groups)
        assert_matches(actual, expected, stats, mask)

    @parameterized.product(
        style=("single device", *styles.JIT),
        size=(4, 8, 16, "local"),
        mask=("none", "empty device"),
    )
    def test_parts_of_a_batch(self, style, size, mask):
        x, dy = make_batch()
        mask = make_masks()[mask]
        dy = np.where(mask, dy, 0).astype(np.float32)
        stats = jaxbn.init_batch_stats(3)
        if style == "jit Explicit" and size in (8, 16):
            with pytest.raises(ValueError, match="span the 8 shards of 32 examples"):
                styles.ALL[style](x, mask, dy, SCALE, BIAS, stats, group_size=size)
            return
        if style == "single device" and size == "local":
            return  # Not known; see below.
        actual = styles.ALL[style](x, mask, dy, SCALE, BIAS, stats, group_size=size)
        size = ROWS if size == "local" else size
        groups = list(np.arange(len(x)).reshape(-1, size))
        expected = grouped_reference(x, mask, dy, groups)
        assert_matches(actual, expected, stats, mask)

    def test_channels_first(self):
        x, _ = make_batch()
        stats = jaxbn.init_batch_stats(3)
        last, first = (
            jaxbn.batch_norm_train(a, SCALE, BIAS, stats, axis=axis, group_size=8)
            for a, axis in ((x, -1), (x.T, 0))
        )
        np.testing.assert_allclose(first[0].T, last[0], atol=1e-6)
        chex.assert_trees_all_close(first[1], last[1], rtol=1e-6)

    @parameterized.parameters("single device", "vmap")
    def test_mean_of_the_groups(self, style):
        x, dy = make_batch()
        mask = np.ones((len(x), 1), bool)
        stats = jaxbn.init_batch_stats(3)
        actual = styles.ALL[style](
            x, mask, dy, SCALE, BIAS, stats, momentum=0.0, pool_groups=False,
            group_size=8 if style == "single device" else 2,
        ).stats  # fmt: skip
        parts = x.astype(np.float64).reshape(4, 8, 3)
        np.testing.assert_allclose(actual.mean, parts.mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(actual.var, parts.var(1, ddof=1).mean(0), rtol=1e-5)

    @parameterized.parameters(
        ({"axis_index_groups": [[0, 1], [1, 2]]}, r"repeated \[1\], missing \[3, 4"),
        ({"axis_index_groups": [[0, 1, 2], [3, 4, 5, 6, 7]]}, r"sizes \[3, 5\]"),
        ({"axis_index_groups": []}, r"missing \[0, 1"),
        ({"axis_index_groups": [[0, 9]]}, r"outside \[9\]"),
        ({"group_size": 3}, "must divide the 8 devices .* got 3"),
        ({"group_size": 0}, "must divide the 8 devices .* got 0"),
        ({"group_size": 2, "axis_index_groups": [[0]]}, "not both"),
        ({"group_size": "local", "axis_index_groups": [[0]]}, "not both"),
    )
    def test_bad_groups_of_devices(self, options, message):
        x = np.zeros((8, ROWS, 3), np.float32)
        with pytest.raises(ValueError, match=message):
            jax.vmap(
                lambda x: jaxbn.batch_norm_train(
                    x, None, None, jaxbn.init_batch_stats(3), axis_name="d", **options
                ),
                axis_name="d",
            )(x)

    def test_bad_parts_of_a_batch(self):
        x, _ = make_batch()
        stats = jaxbn.init_batch_stats(3)
        for size, error in ((5, ValueError), (2.5, TypeError)):
            with pytest.raises(error, match=f"`group_size` must .* got {size}"):
                jaxbn.batch_norm_train(x, None, None, stats, group_size=size)

        def local(examples):
            return jax.jit(
                lambda x: jaxbn.batch_norm_train(
                    x, None, None, stats, group_size="local"
                )
            )(np.ones((examples, 3), np.float32))

        mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(styles.AUTO,) * 2)
        with (
            jax.set_mesh(mesh),
            pytest.raises(ValueError, match="'local' is not clear"),
        ):
            local(32)
        mesh = jax.make_mesh((8,), ("a",), axis_types=(styles.AUTO,))
        for examples in (7, 12):  # Groups would not be those of the devices.
            with (
                jax.set_mesh(mesh),
                pytest.raises(ValueError, match=f"8 devices divide, got {examples}"),
            ):
                local(examples)

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

        actual, expected = (jax.jvp(f, (x,), (dx,)) for f in (split, in_parts))
        chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)

    def test_parts_of_one_axis(self):
        x = jnp.arange(6.0)
        stats = jaxbn.init_batch_stats(6)
        with pytest.raises(ValueError, match=r"`group_size` needs a batch axis"):
            jaxbn.batch_norm_train(x, None, None, stats, group_size=2)

    def test_local_needs_to_see_the_mesh(self):
        mesh = jax.make_mesh((8,), ("a",), axis_types=(styles.AUTO,))
        x = jax.device_put(make_batch()[0], jax.NamedSharding(mesh, jax.P("a")))
        train = lambda x: jaxbn.batch_norm_train(  # noqa: E731
            x, None, None, jaxbn.init_batch_stats(3), group_size="local"
        )
        actual = jax.jit(train)(x)
        expected = jaxbn.batch_norm_train(
            x, None, None, jaxbn.init_batch_stats(3), group_size=ROWS
        )
        chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match=r"needs to see the mesh.*jax.set_mesh"):
            jax.jit(train)(np.asarray(x))

    def test_local_parts_of_an_array_that_says_where_it_is(self):
        x, _ = make_batch()
        mesh = jax.make_mesh((8,), ("a",), axis_types=(styles.AUTO,))
        stats = jaxbn.init_batch_stats(3)
        train = lambda x, size: jaxbn.batch_norm_train(  # noqa: E731
            x, None, None, stats, group_size=size
        )
        split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("a")))
        for given, size in ((split, ROWS), (x, len(x))):
            chex.assert_trees_all_close(
                train(jnp.asarray(given), "local"), train(x, size), rtol=1e-5, atol=1e-6
            )

    def test_parts_of_an_empty_batch(self):
        stats = jaxbn.init_batch_stats(3)
        x = np.ones((0, 3), np.float32)
        y, new = jaxbn.batch_norm_train(x, None, None, stats, group_size=2)
        assert y.shape == (0, 3)
        chex.assert_trees_all_equal(new, stats)


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

    def test_batch_of_one_per_device_is_a_batch(self):
        x = np.random.default_rng(0).standard_normal((8, 1, 3)).astype(np.float32)
        normalize = lambda x: jaxbn.batch_norm_train(  # noqa: E731
            x, None, None, jaxbn.init_batch_stats(3), axis_name="d"
        )
        y, stats = jax.jit(jax.vmap(normalize, axis_name="d"))(x)
        testing.assert_standardized(y.reshape(-1, 3))
        assert np.all(stats.mean != 0)

    def test_axis_that_does_not_split_the_batch(self):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(styles.AUTO,) * 2)

        def normalize(x):
            stats = jaxbn.init_batch_stats(3)
            return jaxbn.batch_norm_train(
                x, None, None, stats, axis_name=("data", "model")
            )[0]

        mapped = jax.shard_map(
            normalize, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data")
        )
        with pytest.raises(
            ValueError, match=r"\['data'\] and the same along \['model'"
        ):
            mapped(np.zeros((8, 3), np.float32))

    def test_unbound_name(self):
        def normalize(x):
            stats = jaxbn.init_batch_stats(3)
            return jaxbn.batch_norm_train(x, None, None, stats, axis_name="batch")

        with pytest.raises(ValueError, match="'batch'; bound here: 'd'"):
            jax.vmap(normalize, axis_name="d")(np.zeros((8, 4, 3), np.float32))
        with pytest.raises(ValueError, match="'batch'; bound here: none"):
            normalize(np.zeros((4, 3), np.float32))


class AutoAxesTest(chex.TestCase):
    def test_groups_that_span_the_shards_of_an_explicit_mesh(self):
        # What the error for them recommends.
        x, _ = make_batch()
        stats = jaxbn.init_batch_stats(3)
        mesh = jax.make_mesh((styles.DEVICES,), ("d",), axis_types=(styles.EXPLICIT,))

        def train(x):
            return jaxbn.batch_norm_train(x, SCALE, BIAS, stats, group_size=16)

        shard, whole = jax.P("d"), jax.P()
        sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, shard))
        with jax.set_mesh(mesh):
            with self.assertRaisesRegex(ValueError, "auto_axes"):
                jax.jit(train)(sharded)
            out = (shard, jaxbn.BatchStats(whole, whole))
            actual = jax.jit(jax.sharding.auto_axes(train, out_sharding=out))(sharded)
        chex.assert_trees_all_close(actual, train(x), atol=2e-6)
