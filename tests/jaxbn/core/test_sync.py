"""Moments over mapped axes: one device with the whole batch is the reference."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxbn.testing
from tests import reference

P = jax.P
DEVICES = 8


def run(style, function, *args):
    """Maps `function` over axis "d" of each array of `args`, `[devices, ...]`."""
    if style == "pmap":
        mapped = jax.pmap(function, axis_name="d")
    elif style == "vmap":
        mapped = jax.vmap(function, axis_name="d")
    else:
        mesh = jax.make_mesh(
            (DEVICES,), ("d",), axis_types=(jax.sharding.AxisType.Auto,)
        )

        def on_shard(*shards):
            outputs = function(*(shard[0] for shard in shards))
            return jax.tree.map(lambda out: out[None], outputs)

        mapped = jax.shard_map(
            on_shard,
            mesh=mesh,
            in_specs=P("d"),
            out_specs=P("d"),
            check_vma=style == "shard_map",
        )
    return jax.jit(mapped)(*args)


STYLES = ("pmap", "vmap", "shard_map", "shard_map_unchecked")


def make_masks():
    rows = np.ones((DEVICES, 4, 1), bool)
    uneven = rows.copy()
    uneven[0, 1:] = False  # One valid row here, four elsewhere.
    uneven[3, :2] = False
    empty = uneven.copy()
    empty[5] = False
    return {"none": rows, "uneven": uneven, "empty device": empty}


class SyncTest(chex.TestCase):
    @parameterized.product(style=STYLES, mask=tuple(make_masks()), loc=(0.0, 1e3))
    def test_equals_one_device(self, style, mask, loc):
        rng = np.random.default_rng(0)
        # Each device has a mean of its own: a mean of means would be wrong.
        shift = np.arange(DEVICES)[:, None, None]
        x = (loc + shift + rng.standard_normal((DEVICES, 4, 3))).astype(np.float32)
        dy = rng.standard_normal(x.shape).astype(np.float32)
        mask = make_masks()[mask]
        x, dy = np.where(mask, x, np.nan), np.where(mask, dy, 0).astype(np.float32)
        scale, bias = np.float32([1, 2, 0.5]), np.float32([0, 1, -1])
        stats = jaxbn.init_batch_stats(3)

        def step(x, dy, mask):
            def normalize(x):
                return jaxbn.batch_norm_train(
                    x, scale, bias, stats, mask=mask, axis_name="d"
                )

            y, vjp, new = jax.vjp(normalize, x, has_aux=True)
            return y, vjp(dy)[0], new

        y, dx, new = run(style, step, x, dy, mask)
        flat = [a.reshape(-1, a.shape[-1]) for a in (x, dy, mask)]
        expected = reference.batch_norm(flat[0], scale, bias, flat[1], mask=flat[2])
        keep = np.broadcast_to(mask, x.shape)
        # 1e-5 relative to scale; at a mean of 1e3 its rounding adds 6e-5.
        atol = 1e-5 if loc == 0 else 2e-4
        np.testing.assert_allclose(
            np.asarray(y)[keep], expected.y.reshape(x.shape)[keep], atol=atol
        )
        np.testing.assert_allclose(dx, expected.dx.reshape(x.shape), atol=atol)
        mean, var = reference.updated(stats, expected.moments)
        for device in range(DEVICES):
            np.testing.assert_allclose(new.mean[device], mean, rtol=1e-6)
            np.testing.assert_allclose(new.var[device], var, rtol=1e-5)

    @parameterized.product(style=STYLES, rows=(4, 64))
    def test_variance_at_a_large_mean(self, style, rows):
        # Float32 means of the devices alone would leave an error of 1e-3 here.
        x = 1e4 + np.random.default_rng(0).standard_normal((DEVICES, rows, 16))
        x = x.astype(np.float32)

        def var(x):
            stats = jaxbn.init_batch_stats(16)
            return jaxbn.batch_norm_train(
                x, None, None, stats, axis_name="d", momentum=0.0, unbiased=False
            )[1].var

        expected = reference.moments(x.reshape(-1, 16)).var
        for actual in run(style, var, x):
            np.testing.assert_allclose(actual, expected, rtol=1e-4)

    @parameterized.parameters("pmap", "shard_map_unchecked")
    def test_groups(self, style):
        x = np.random.default_rng(0).standard_normal((DEVICES, 4, 3))
        x = (x + np.arange(DEVICES)[:, None, None]).astype(np.float32)
        groups = [[0, 3, 5, 6], [1, 2, 4, 7]]

        def normalize(x):
            stats = jaxbn.init_batch_stats(3)
            return jaxbn.batch_norm_train(
                x, None, None, stats, axis_name="d", axis_index_groups=groups
            )[0]

        y = run(style, normalize, x)
        for group in groups:
            whole = x[np.array(group)].reshape(-1, 3)
            expected = reference.batch_norm(whole, np.ones(3), np.zeros(3), whole).y
            actual = np.asarray(y)[np.array(group)].reshape(-1, 3)
            np.testing.assert_allclose(actual, expected, atol=1e-5)

    def test_tuple_of_names(self):
        x = np.random.default_rng(0).standard_normal((2, 4, 5, 3)).astype(np.float32)

        def normalize(x):
            stats = jaxbn.init_batch_stats(3)
            return jaxbn.batch_norm_train(x, None, None, stats, axis_name=("a", "b"))[0]

        y = jax.jit(jax.vmap(jax.vmap(normalize, axis_name="b"), axis_name="a"))(x)
        flat = x.reshape(-1, 3)
        expected = reference.batch_norm(flat, np.ones(3), np.zeros(3), flat).y
        np.testing.assert_allclose(y.reshape(-1, 3), expected, atol=1e-5)

    def test_complex(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((8, 4, 2)) + 1j * rng.standard_normal((8, 4, 2))
        x = x.astype(np.complex64)
        stats = jaxbn.init_batch_stats(2, jnp.complex64)

        def loss(x, **options):
            y = jaxbn.batch_norm_train(x, None, None, stats, **options)[0]
            return jnp.sum(jnp.abs(y + 1) ** 3)

        actual = run("vmap", jax.grad(lambda x: loss(x, axis_name="d")), x)
        expected = jax.jit(jax.grad(loss))(x.reshape(-1, 2))
        np.testing.assert_allclose(actual.reshape(-1, 2), expected, atol=1e-5)

    def test_batch_of_one_per_device_is_a_batch(self):
        x = np.random.default_rng(0).standard_normal((DEVICES, 1, 3))

        def normalize(x):
            stats = jaxbn.init_batch_stats(3)
            return jaxbn.batch_norm_train(x, None, None, stats, axis_name="d")

        y, stats = run("vmap", normalize, x.astype(np.float32))
        jaxbn.testing.assert_standardized(y.reshape(-1, 3))
        self.assertTrue(np.all(stats.mean != 0))

    def test_unbound_name(self):
        def normalize(x):
            stats = jaxbn.init_batch_stats(3)
            return jaxbn.batch_norm_train(x, None, None, stats, axis_name="batch")

        with pytest.raises(ValueError, match="'batch'; bound here: 'd'"):
            run("vmap", normalize, np.zeros((DEVICES, 4, 3), np.float32))
        with pytest.raises(ValueError, match="'batch'; bound here: none"):
            normalize(np.zeros((4, 3), np.float32))
