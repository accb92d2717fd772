"""Each assertion passes where it should, and fails where it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxbn
from jaxbn import testing


class BatchStatsTest(parameterized.TestCase):
    @parameterized.parameters(
        (jaxbn.init_batch_stats(3),),
        (jaxbn.init_batch_stats(3, jnp.complex64),),
        ({"block": {"bn": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}},),
    )
    def test_passes(self, stats):
        testing.assert_valid_batch_stats(stats)

    @parameterized.parameters(
        (jnp.zeros(3), -jnp.ones(3), "negative variance"),
        (jnp.zeros(3), jnp.full(3, jnp.inf), "bn"),
        (jnp.full(3, jnp.nan), jnp.ones(3), "bn"),
        (jnp.zeros(2), jnp.ones(3), "bn"),
        (jnp.zeros(3, jnp.bfloat16), jnp.ones(3), "bn"),
        (jnp.zeros(3), jnp.ones(3, jnp.float16), "bn"),
    )
    def test_fails(self, mean, var, message):
        with pytest.raises(AssertionError, match=message):
            testing.assert_valid_batch_stats({"bn": {"mean": mean, "var": var}})

    def test_nothing_to_check_fails(self):
        with pytest.raises(AssertionError, match="holds no pair"):
            testing.assert_valid_batch_stats({})


class OutputTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.x = jax.random.normal(jax.random.key(0), (32, 3)) * 5 + 2

    def layer(self, x, scale=None, bias=None, **options):
        stats = jaxbn.init_batch_stats(x.shape[-1])
        return jaxbn.batch_norm_train(x, scale, bias, stats, **options)[0]

    def test_standardized(self):
        scale, bias = jnp.array([1.0, -2.0, 3.0]), jnp.array([0.0, 1.0, 2.0])
        testing.assert_standardized(self.layer(self.x))
        testing.assert_standardized(self.layer(self.x, scale, bias), scale, bias)
        mask = np.arange(32)[:, None] < 20
        testing.assert_standardized(self.layer(self.x, mask=mask), mask=mask)
        for y, options in (
            (self.x, {}),
            (self.layer(self.x) + 0.01, {}),
            (self.layer(self.x) * 1.01, {}),
            (self.layer(self.x, mask=mask), {}),
        ):
            with pytest.raises(AssertionError, match="not standardised"):
                testing.assert_standardized(y, **options)

    def test_scale_invariant(self):
        testing.assert_scale_invariant(self.layer, self.x)
        with pytest.raises(AssertionError, match="not invariant"):
            testing.assert_scale_invariant(lambda x: x, self.x)
        # The default is a power of two, of which nothing is rounded.
        testing.assert_scale_invariant(lambda x: jnp.frexp(x)[0], self.x)


class InSyncTest(parameterized.TestCase):
    def test_copies_on_devices(self):
        mesh = jax.make_mesh((8,), ("d",))
        replicated = jax.sharding.NamedSharding(mesh, jax.P())
        same = jax.device_put(jnp.arange(3.0), replicated)
        testing.assert_in_sync({"mean": same})
        drifted = jax.make_array_from_single_device_arrays(
            (3,),
            replicated,
            [jax.device_put(jnp.arange(3.0) + (i == 5), d)
             for i, d in enumerate(jax.devices())],
        )  # fmt: skip
        with pytest.raises(AssertionError, match=r"\['mean'\] on device cpu:5 differs"):
            testing.assert_in_sync({"mean": drifted})

    def test_copies_of_each_part(self):
        mesh = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4])
        sharding = jax.sharding.NamedSharding(mesh, jax.P("model"))
        same = jax.device_put(jnp.arange(4.0), sharding)
        testing.assert_in_sync(same)
        shards = [s.data + 9 * (i == 3) for i, s in enumerate(same.addressable_shards)]
        drifted = jax.make_array_from_single_device_arrays((4,), sharding, shards)
        with pytest.raises(AssertionError, match="in 2 of 2 elements"):
            testing.assert_in_sync(drifted)

    def test_any_leaf(self):
        tree = (jax.random.key(0), jnp.array(True), np.ones(3), jnp.uint8(7))
        testing.assert_in_sync(tree)

    def test_stacked_copies(self):
        testing.assert_in_sync(jnp.ones((8, 3)), axis=0)
        with pytest.raises(AssertionError, match="device 2"):
            testing.assert_in_sync(jnp.ones((8, 3)).at[2, 1].set(7), axis=0)
