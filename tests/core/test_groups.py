import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxbn
import jaxbn.testing
from tests import styles
from tests.whole_batch import (
    BIAS,
    ROWS,
    SCALE,
    assert_matches,
    grouped_reference,
    make_batch,
    make_masks,
)


def test_local_is_the_whole_batch_on_one_device(monkeypatch):
    """The group is also the whole batch where no mesh is set."""
    monkeypatch.setattr(jax, "devices", lambda: [None])
    x, _ = make_batch()
    stats = jaxbn.init_batch_stats(3)
    train = lambda size: jax.jit(  # noqa: E731
        lambda x: jaxbn.batch_norm_train(x, None, None, stats, group_size=size)
    )(x)
    chex.assert_trees_all_close(train("local"), train(len(x)), rtol=1e-6)


class GroupTest(chex.TestCase):
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
            pytest.raises(ValueError, match="'local' is ambiguous"),
        ):
            local(32)
        mesh = jax.make_mesh((8,), ("a",), axis_types=(styles.AUTO,))
        for examples in (7, 12):  # Groups would not be those of the devices.
            with (
                jax.set_mesh(mesh),
                pytest.raises(ValueError, match=f"8 devices divide, got {examples}"),
            ):
                local(examples)

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
        with pytest.raises(ValueError, match=r"'local' needs a mesh.*jax.set_mesh"):
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


class SyncTest(chex.TestCase):
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

        with pytest.raises(ValueError, match="'batch', which is not bound here"):
            jax.vmap(normalize, axis_name="d")(np.zeros((8, 4, 3), np.float32))
        with pytest.raises(ValueError, match="'batch', which is not bound here"):
            normalize(np.zeros((4, 3), np.float32))


class AutoAxesTest(chex.TestCase):
    def test_groups_that_span_the_shards_of_an_explicit_mesh(self):
        # The second call does what the error message recommends.
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


X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)

STATS = jaxbn.BatchStats(jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0]))


class ErrorTest(parameterized.TestCase):
    def test_group_size_of_numpy(self):
        train = functools.partial(jaxbn.batch_norm_train, X, None, None, STATS)
        chex.assert_trees_all_equal(train(group_size=np.int64(4)), train(group_size=4))
        for bad in (True, 2.0, "4"):
            with pytest.raises(TypeError, match="`group_size` must be an int"):
                train(group_size=bad)

    def test_axis_names_in_a_list(self):
        stats = lambda name: jax.jit(  # noqa: E731
            jax.vmap(
                lambda x: jaxbn.batch_norm_train(x, None, None, STATS, axis_name=name),
                axis_name="d",
            )
        )(X.reshape(2, 4, 3))
        chex.assert_trees_all_equal(stats(["d"]), stats("d"))

    def test_groups_without_a_name(self):
        with pytest.raises(
            ValueError, match="`axis_index_groups` needs an `axis_name`"
        ):
            jaxbn.batch_norm_train(
                X, None, None, STATS, axis_index_groups=[[0, 1], [2, 3]]
            )


@pytest.mark.first_case
@pytest.mark.parametrize("size", [4, 8, 16, "local"])
@pytest.mark.parametrize("style", ["single device", *styles.JIT])
def test_parts_of_a_batch(style, size):
    x, dy = make_batch()
    stats = jaxbn.init_batch_stats(3)
    masks = [make_masks()[name] for name in ("none", "empty device")]
    if style == "jit Explicit" and size in (8, 16):
        with pytest.raises(ValueError, match="span the 8 shards of 32 examples"):
            styles.run(style, x, masks[0], dy, SCALE, BIAS, stats, group_size=size)
        return
    if style == "single device" and size == "local":
        return  # Not known; see below.
    for mask in masks:
        dy = np.where(mask, dy, 0).astype(np.float32)
        actual = styles.run(style, x, mask, dy, SCALE, BIAS, stats, group_size=size)
        rows = ROWS if size == "local" else size
        groups = list(np.arange(len(x)).reshape(-1, rows))
        expected = grouped_reference(x, mask, dy, groups)
        assert_matches(actual, expected, stats, mask)


def test_parts_of_a_batch_on_an_explicit_mesh():
    x, _ = make_batch(channels=4)
    stats = jaxbn.init_batch_stats(4)

    @jax.jit
    def train(x):
        return jaxbn.batch_norm_train(x, None, None, stats, group_size=4)

    mesh = jax.make_mesh((4, 2), ("data", "model"))
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data", "model")))
    chex.assert_trees_all_close(train(split), train(x), rtol=1e-5, atol=1e-6)


class PartTest(chex.TestCase):
    def test_channels_first(self):
        x, _ = make_batch()
        stats = jaxbn.init_batch_stats(3)
        last, first = (
            jaxbn.batch_norm_train(a, SCALE, BIAS, stats, axis=axis, group_size=8)
            for a, axis in ((x, -1), (x.T, 0))
        )
        np.testing.assert_allclose(first[0].T, last[0], atol=1e-6)
        chex.assert_trees_all_close(first[1], last[1], rtol=1e-6)

    def test_parts_of_an_empty_batch(self):
        stats = jaxbn.init_batch_stats(3)
        x = np.ones((0, 3), np.float32)
        y, new = jaxbn.batch_norm_train(x, None, None, stats, group_size=2)
        assert y.shape == (0, 3)
        chex.assert_trees_all_equal(new, stats)
