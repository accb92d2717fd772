import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxbn
import jaxbn.testing
from tests import reference
from tests.reference import assert_moments_close

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


class BatchMomentsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(
        shape=((8, 3), (256, 4), (2, 5, 5, 3), (40_000, 2)),
        loc=(0.0, 1.0, 1e2, 1e4),  # E[x^2] - E[x]^2 loses all of it from 1e3 on.
    )
    def test_matches_float64(self, shape, loc):
        x = loc + np.random.default_rng(0).standard_normal(shape)
        x = x.astype(np.float32)
        actual = self.variant(jaxbn.batch_moments)(x)
        assert_moments_close(actual, reference.moments(x))

    @parameterized.parameters(jnp.float16, jnp.bfloat16)
    def test_half_precision_is_summed_in_float32(self, dtype):
        # In float16 the sum of squares of these values overflows.
        x = (400 + 3 * jax.random.normal(jax.random.key(0), (512, 3))).astype(dtype)
        actual = jaxbn.batch_moments(x)
        chex.assert_type(jax.tree.leaves(actual), jnp.float32)
        assert_moments_close(actual, reference.moments(np.asarray(x, np.float64)))

    @parameterized.parameters(
        (-1, (5,)), (0, (2,)), (1, (3,)), ((0, -1), (2, 5)), ((2, 1), (3, 4))
    )
    def test_any_axis(self, axis, shape):
        x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
        actual = jaxbn.batch_moments(x, axis)
        chex.assert_shape(jax.tree.leaves(actual), shape)
        assert_moments_close(actual, reference.moments(x, axis=axis))

    @parameterized.parameters((8, 1, 1), (8, 4, 1), (4, 1), (1, 1, 3), (8, 4, 3), ())
    def test_mask(self, *shape):
        rng = np.random.default_rng(0)
        x = (5 + rng.standard_normal((8, 4, 3))).astype(np.float32)
        mask = rng.random(shape) < 0.6
        actual = jaxbn.batch_moments(x, mask=mask)
        full = np.broadcast_to(mask, x.shape)
        assert_moments_close(actual, reference.moments(x, mask=full))
        hidden = jnp.where(full, x, jnp.nan)
        chex.assert_trees_all_equal(jaxbn.batch_moments(hidden, mask=mask), actual)

    def test_no_valid_element_gives_zeros(self):
        zeros = jaxbn.Moments(*(jnp.zeros(3) for _ in range(4)))
        empty = jaxbn.batch_moments(jnp.ones((0, 3)))
        masked = jaxbn.batch_moments(jnp.full((4, 3), jnp.nan), mask=np.zeros((4, 1)))
        chex.assert_trees_all_equal(empty, masked, zeros)

    def test_rank_one_has_one_value_per_channel(self):
        actual = jaxbn.batch_moments(jnp.array([3.0, 4.0]))
        chex.assert_trees_all_equal(
            actual,
            jaxbn.Moments(jnp.ones(2), jnp.array([3.0, 4.0]), *jnp.zeros((2, 2))),
        )

    def test_complex_variance_is_real(self):
        rng = np.random.default_rng(0)
        x = (rng.standard_normal((64, 2)) + 1j * rng.standard_normal((64, 2))) * 2 + 1j
        actual = jaxbn.batch_moments(x.astype(np.complex64))
        chex.assert_type(actual.mean, jnp.complex64)
        chex.assert_type(actual.var, jnp.float32)
        np.testing.assert_allclose(actual.mean, x.mean(0), rtol=1e-5)
        np.testing.assert_allclose(actual.var, x.var(0), rtol=1e-5)

    def test_float64_under_x64(self):
        with jax.enable_x64(True):
            x = 1e7 + np.random.default_rng(0).standard_normal((64, 2))
            actual = jaxbn.batch_moments(x)
            chex.assert_type(jax.tree.leaves(actual), jnp.float64)
            np.testing.assert_allclose(actual.var, x.var(0), rtol=1e-8)

    def test_constant_channels_have_no_variance(self):
        x = jnp.broadcast_to(jnp.array([0.0, 0.1, -1e4]), (1000, 3))
        actual = jaxbn.batch_moments(x)
        # Rounding of the mean leaves (eps * |mean|)^2 at most.
        assert np.all(actual.var <= (1.2e-7 * np.abs(x[0])) ** 2)

    @parameterized.parameters(0.0, 1e3)
    def test_derivatives(self, loc):
        # Both formulas of the variance agree in first, second and forward derivatives.
        x = loc + np.random.default_rng(0).standard_normal((6, 2))
        with jax.enable_x64(True):

            def var(x):
                return jnp.sum(jnp.sin(jaxbn.batch_moments(x).var))

            def plain(x):
                return jnp.sum(jnp.sin(jnp.var(x, 0)))

            chex.assert_trees_all_close(
                jax.jit(lambda x: (jax.grad(var)(x), jax.hessian(var)(x)))(x),
                jax.jit(lambda x: (jax.grad(plain)(x), jax.hessian(plain)(x)))(x),
                rtol=1e-8,
                atol=1e-10,
            )

    def test_derivative_at_a_large_mean(self):
        """The mean has two floats; one float alone is off by up to 5e-4 std here."""
        x = (1e4 + np.random.default_rng(0).standard_normal((500, 3))).astype("f4")
        exact = 2 * (x - x.mean(0, dtype="f8")) / 500
        actual = jax.grad(lambda x: jnp.sum(jaxbn.batch_moments(x).var))(x)
        np.testing.assert_allclose(actual, exact, rtol=0, atol=2 / 500 * 1e-6)

    def test_masked_nan_reaches_no_derivative(self):
        x = jnp.arange(8.0).reshape(4, 2).at[3].set(jnp.nan)
        mask = np.arange(4)[:, None] < 3

        def var(x):
            return jnp.sum(jaxbn.batch_moments(x, mask=mask).var ** 2)

        derivatives = jax.jit(lambda x: (jax.grad(var)(x), jax.hessian(var)(x)))
        chex.assert_tree_all_finite(derivatives(x))

    def test_channels_sharded_over_an_explicit_mesh(self):
        mesh = jax.make_mesh((4, 2), ("data", "model"))
        sharding = jax.sharding.NamedSharding(mesh, jax.P("data", "model"))
        x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
        actual = jaxbn.batch_moments(jax.device_put(x, sharding))
        assert_moments_close(actual, reference.moments(x))

    def test_mask_that_could_mean_two_things(self):
        for size in (2, 8):
            with pytest.raises(ValueError, match=r"`mask` .* could belong to"):
                jaxbn.batch_moments(jnp.ones((size, size)), mask=np.ones(size, bool))

    @parameterized.product(value=(0.1, 1 / 3, -1e4 / 3), rows=(3, 7, 64, 1000))
    def test_a_constant_that_is_no_float_has_no_negative_variance(self, value, rows):
        x = jnp.full((rows, 2), value, jnp.float32)
        whole = jaxbn.batch_moments(x)
        merged = jaxbn.merge_moments(*(jaxbn.batch_moments(p) for p in (x[:2], x[2:])))
        for var in (whole.var, merged.var):
            # Rounding of the mean, squared.
            assert np.all((var >= 0) & (var <= 1e-13 * value**2))

    def test_one_dimensional_mask_of_the_last_axis_with_channels_first(self):
        x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
        mask = np.arange(8) < 5
        actual = jaxbn.batch_moments(x, axis=0, mask=mask)
        assert_moments_close(actual, reference.moments(x[:, :5], axis=0))

    @parameterized.parameters(2, -3, [(0, 0)], [(1, -1)])
    def test_bad_axis(self, axis):
        with pytest.raises(ValueError, match=r"`axis` must .* got"):
            jaxbn.batch_moments(jnp.ones((4, 3)), axis)
