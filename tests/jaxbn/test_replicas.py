import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn import testing

P = jax.P


def make_stats():
    rng = np.random.default_rng(0)
    means = rng.standard_normal((8, 3)).astype(np.float32) * 5
    variances = rng.random((8, 3)).astype(np.float32) + 1
    return {"block": {"bn": {"mean": means, "var": variances}}}


@pytest.mark.parametrize("style", ["vmap", "pmap", "shard_map"])
def test_merge_has_the_variance_of_the_means(style):
    stats = make_stats()
    merge = lambda s: jaxbn.sync_batch_stats(s, "d")  # noqa: E731
    if style == "shard_map":
        mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        first = lambda s: jax.tree.map(lambda leaf: leaf[0], s)  # noqa: E731
        merged = jax.shard_map(
            lambda s: merge(first(s)), mesh=mesh, in_specs=P("d"), out_specs=P()
        )(stats)
    else:
        merged = getattr(jax, style)(merge, axis_name="d")(stats)
        testing.assert_in_sync(merged, axis=0)
        merged = jax.tree.map(lambda leaf: leaf[0], merged)
    bn, old = merged["block"]["bn"], stats["block"]["bn"]
    np.testing.assert_allclose(bn["mean"], old["mean"].mean(0), rtol=1e-5)
    expected = old["var"].mean(0) + old["mean"].var(0)  # A pmean has the first alone.
    np.testing.assert_allclose(bn["var"], expected, rtol=1e-5)


def test_equal_replicas_stay_as_they_are():
    stats = jaxbn.BatchStats(jnp.ones((8, 3)), jnp.full((8, 3), 2.0))
    merged = jax.vmap(lambda s: jaxbn.sync_batch_stats(s, "d"), axis_name="d")(stats)
    chex.assert_trees_all_equal(merged, stats)


def test_merged_statistics_of_halves_are_those_of_the_whole():
    x = np.random.default_rng(0).standard_normal((8, 64, 3)).astype(np.float32)
    x += np.arange(8, dtype=np.float32)[:, None, None]

    def local_then_merged(x):
        _, stats = jaxbn.batch_norm_train(
            x, None, None, jaxbn.init_batch_stats(3), momentum=0.0, unbiased=False
        )
        return jaxbn.sync_batch_stats(stats, "d")

    merged = jax.vmap(local_then_merged, axis_name="d")(x)
    whole = x.astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(merged.mean[0], whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(merged.var[0], whole.var(0), rtol=1e-5)


@pytest.mark.parametrize("change", [0.0, 1e-6, np.nan])
def test_in_sync(change):
    stats = {"mean": jnp.ones((8, 3)).at[5, 1].add(change), "z": jnp.ones((8, 2)) * 1j}
    same = jax.vmap(lambda s: jaxbn.in_sync(s, "d"), axis_name="d")(stats)
    np.testing.assert_array_equal(same, change == 0)


def test_unbound_axis():
    for function in (jaxbn.sync_batch_stats, jaxbn.in_sync):
        with pytest.raises(ValueError, match="`axis_name` must be bound"):
            function(jaxbn.init_batch_stats(3), "d")
