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
from tests.whole_batch import BIAS, ROWS, SCALE, make_batch


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

        with pytest.raises(ValueError, match="'batch'; bound here: 'd'"):
            jax.vmap(normalize, axis_name="d")(np.zeros((8, 4, 3), np.float32))
        with pytest.raises(ValueError, match="'batch'; bound here: none"):
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
