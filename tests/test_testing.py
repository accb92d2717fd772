"""Each assertion passes where it should, and fails where it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn import testing


@pytest.mark.parametrize(
    "stats",
    [
        jaxbn.init_batch_stats(3, jnp.complex64, estimator="window"),
        {"block": {"bn": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}},
    ],
)
def test_valid_batch_stats(stats):
    testing.assert_valid_batch_stats(stats)


@pytest.mark.parametrize(
    ("mean", "var", "message"),
    [
        (jnp.zeros(3), -jnp.ones(3), "negative variance"),
        (jnp.zeros(3), jnp.full(3, jnp.inf), "bn"),
        (jnp.full(3, jnp.nan), jnp.ones(3), "bn"),
        (jnp.zeros(2), jnp.ones(3), "bn"),
        (jnp.zeros(3, jnp.bfloat16), jnp.ones(3), "bn"),
        (jnp.zeros(3), jnp.ones(3, jnp.float16), "bn"),
        (jnp.zeros(3), None, "holds no pair"),
    ],
)
def test_invalid_batch_stats(mean, var, message):
    with pytest.raises(AssertionError, match=message):
        testing.assert_valid_batch_stats({"bn": {"mean": mean, "var": var}})


X = np.random.default_rng(0).standard_normal((32, 3)).astype(np.float32) * 5 + 2


def layer(x, scale=None, bias=None, **options):
    stats = jaxbn.init_batch_stats(x.shape[-1])
    return jaxbn.batch_norm_train(x, scale, bias, stats, **options)[0]


def test_standardized():
    scale, bias = jnp.array([1.0, -2.0, 3.0]), jnp.array([0.0, 1.0, 2.0])
    testing.assert_standardized(layer(X))
    testing.assert_standardized(layer(X, scale, bias), scale, bias)
    mask = np.arange(32)[:, None] < 20
    testing.assert_standardized(layer(X, mask=mask), mask=mask)
    for y in (X, layer(X) + 0.01, layer(X) * 1.01, layer(X, mask=mask)):
        with pytest.raises(AssertionError, match="not standardised"):
            testing.assert_standardized(y)


def test_scale_invariant():
    testing.assert_scale_invariant(layer, X)
    with pytest.raises(AssertionError, match="not invariant"):
        testing.assert_scale_invariant(lambda x: x, X)
    # The default is a power of two, of which nothing is rounded.
    testing.assert_scale_invariant(lambda x: jnp.frexp(x)[0], X, atol=0)


def test_in_sync_on_devices():
    mesh = jax.make_mesh((8,), ("d",))
    replicated = jax.sharding.NamedSharding(mesh, jax.P())
    testing.assert_in_sync({"mean": jax.device_put(jnp.arange(3.0), replicated)})
    copies = [
        jax.device_put(jnp.arange(3.0) + (i == 5), device)
        for i, device in enumerate(jax.devices())
    ]
    drifted = jax.make_array_from_single_device_arrays((3,), replicated, copies)
    with pytest.raises(AssertionError, match=r"\['mean'\] on device cpu:5 differs"):
        testing.assert_in_sync({"mean": drifted})


def test_in_sync_for_each_part():
    mesh = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.P("model"))
    same = jax.device_put(jnp.arange(4.0), sharding)
    testing.assert_in_sync(same)
    shards = [s.data + 9 * (i == 3) for i, s in enumerate(same.addressable_shards)]
    drifted = jax.make_array_from_single_device_arrays((4,), sharding, shards)
    with pytest.raises(AssertionError, match="in 2 of 2 elements"):
        testing.assert_in_sync(drifted)


def test_in_sync_of_any_leaf_and_of_stacked_copies():
    tree = (jax.random.key(0), jnp.array(True), np.ones(3), jnp.uint8(7))
    testing.assert_in_sync(tree)
    testing.assert_in_sync(jnp.ones((8, 3)), axis=0)
    with pytest.raises(AssertionError, match="device 2"):
        testing.assert_in_sync(jnp.ones((8, 3)).at[2, 1].set(7), axis=0)
