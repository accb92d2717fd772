import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxbn.testing
from tests import reference

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)

STATS = jaxbn.BatchStats(jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0]))

SCALE, BIAS = np.float32([1, 2, 3]), np.float32([4, 5, 6])


class TrainTest(chex.TestCase):
    @parameterized.product(momentum=(0.0, 0.9), unbiased=(True, False))
    def test_running_statistics(self, momentum, unbiased):
        _, new = jaxbn.batch_norm_train(
            X, None, None, STATS, momentum=momentum, unbiased=unbiased
        )
        mean, var = reference.updated(
            STATS, reference.moments(X), momentum=momentum, unbiased=unbiased
        )
        np.testing.assert_allclose(new.mean, mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(new.var, var, rtol=1e-6)

    def test_traced_momentum(self):
        step = jax.jit(
            lambda momentum: jaxbn.batch_norm_train(
                X, None, None, STATS, momentum=momentum
            )[1]
        )
        chex.assert_trees_all_close(step(1.0), STATS)

    def test_unbiased_factor_counts_valid_elements(self):
        mask = np.arange(8)[:, None] < 3
        _, new = jaxbn.batch_norm_train(X, None, None, STATS, mask=mask, momentum=0.0)
        np.testing.assert_allclose(new.var, X[:3].var(0, ddof=1), rtol=1e-5)

    @parameterized.parameters(
        (np.float32, np.float32),
        (np.float16, np.float16),
        (jnp.bfloat16, jnp.bfloat16),
        (np.int32, np.float32),
        (np.uint8, np.float32),
    )
    def test_dtypes(self, dtype, expected):
        x = (np.abs(X) * 50).astype(dtype)
        y, new = jaxbn.batch_norm_train(x, SCALE, BIAS, STATS)
        chex.assert_type(y, expected)
        chex.assert_type([new.mean, new.var], jnp.float32)
        inference = jaxbn.batch_norm_inference(x, SCALE, BIAS, STATS)
        chex.assert_type(inference, expected)
        exact = reference.batch_norm(np.float64(x), SCALE, BIAS, X).y
        np.testing.assert_allclose(
            np.float64(y), exact, rtol=float(jnp.finfo(expected).eps), atol=1e-5
        )

    def test_result_dtype(self):
        y, _ = jaxbn.batch_norm_train(
            X.astype(jnp.bfloat16), SCALE, BIAS, STATS, dtype=jnp.float32
        )
        chex.assert_type(y, jnp.float32)

    @parameterized.parameters(False, True)
    def test_empty_or_masked_batch_changes_nothing(self, masked):
        x = np.full((4 if masked else 0, 3), np.nan, np.float32)
        mask = np.zeros((4, 1), bool) if masked else None
        y, new = jaxbn.batch_norm_train(x, SCALE, BIAS, STATS, mask=mask)
        chex.assert_trees_all_equal(new, STATS)
        chex.assert_tree_all_finite(y)

    def test_constant_channel_without_epsilon_gives_the_bias(self):
        x = np.broadcast_to(np.float32([0, 7, 1e4]), (8, 3))
        y, _ = jaxbn.batch_norm_train(x, SCALE, BIAS, STATS, epsilon=0.0)
        np.testing.assert_array_equal(y, np.broadcast_to(BIAS, (8, 3)))

    def test_outside_jit_nothing_is_compiled_twice(self):
        call = functools.partial(jaxbn.batch_norm_train, X, SCALE, BIAS, STATS)
        jax.block_until_ready(call())
        with jax.log_compiles(), self.assertNoLogs("jax", "WARNING"):
            jax.block_until_ready(call())

    def test_nan_in_the_batch_does_not_reach_the_statistics(self):
        x = X.copy()
        x[2, 1] = np.nan
        _, new = jaxbn.batch_norm_train(x, SCALE, BIAS, STATS)
        assert new.mean[1] == STATS.mean[1]
        assert new.var[1] == STATS.var[1]
        assert new.mean[0] != STATS.mean[0]

    @parameterized.parameters(((1, 3),), ((1, 1, 1, 3),), ((3,),))
    def test_single_value_warns_and_changes_nothing(self, shape):
        x = np.full(shape, 7.0, np.float32)
        with pytest.warns(UserWarning, match="one value per channel"):
            y, new = jaxbn.batch_norm_train(x, SCALE, BIAS, STATS, momentum=0.0)
        chex.assert_trees_all_equal(new, STATS)
        np.testing.assert_array_equal(y, np.broadcast_to(BIAS, shape))

    @parameterized.parameters(
        (np.float32, False), (jnp.bfloat16, False), (np.complex64, False),
        (np.float32, True), (np.float64, True), (np.complex128, True),
    )  # fmt: skip
    def test_scan_keeps_shapes_and_dtypes(self, dtype, x64):
        with jax.enable_x64(x64):
            mean = np.complex64 if np.issubdtype(dtype, np.complexfloating) else None
            stats = jaxbn.init_batch_stats(3, mean or np.float32)

            @jax.jit
            def steps(stats, xs):
                def body(stats, x):
                    return jaxbn.batch_norm_train(x, SCALE, BIAS, stats)[::-1]

                return jax.lax.scan(body, stats, xs)

            new, y = steps(stats, jnp.stack([X, X]).astype(dtype))
            chex.assert_trees_all_equal_shapes_and_dtypes(new, stats)
            chex.assert_type(y, dtype)

    def test_half_precision_reductions_on_request(self):
        x = np.full((70_000, 3), 400, np.float16) + X[:1].astype(np.float16)
        x[::3] += 1
        for force in (True, False):
            _, new = jaxbn.batch_norm_train(
                x, None, None, STATS, momentum=0.0, force_float32_reductions=force
            )
            jaxbn.testing.assert_valid_batch_stats(new)
            rounded = np.asarray(new.mean).astype(np.float16).astype(np.float32)
            assert np.all(rounded == new.mean) == (not force)

    def test_no_gradient_through_running_statistics(self):
        def total(x, stats):
            new = jaxbn.batch_norm_train(x, SCALE, BIAS, stats)[1]
            return jnp.sum(new.mean) + jnp.sum(new.var)

        grads = jax.grad(total, (0, 1))(X, STATS)
        chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))


class InferenceTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16, jnp.float16)
    def test_affine_map_in_float32(self, dtype):
        # Half-precision statistics would make 100.7 and 1e5 useless.
        stats = jaxbn.BatchStats(jnp.full(3, 100.7), jnp.array([0.25, 1e5, 1.0]))
        x = (100 + X).astype(dtype)
        infer = self.variant(jaxbn.batch_norm_inference)
        y = infer(x, SCALE, BIAS, stats)
        x64 = np.float64(x)
        expected = (x64 - 100.7) / np.sqrt(np.float64(stats.var) + 1e-5) * SCALE + BIAS
        np.testing.assert_allclose(
            np.float64(y), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-4
        )

    def test_channels_first(self):
        y = jaxbn.batch_norm_inference(X.T, SCALE, BIAS, STATS, axis=0)
        expected = jaxbn.batch_norm_inference(X, SCALE, BIAS, STATS)
        # The compiler may round a product and a sum once, or each of them.
        chex.assert_trees_all_close(y.T, expected, rtol=1e-6, atol=1e-6)
