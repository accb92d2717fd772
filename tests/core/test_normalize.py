"""The op and its derivative rule."""

import contextlib
import functools
import io

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxbn
from tests import reference
from tests.op import make_batch, plain, train


class ValueAndGradientTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(
        ((16, 3), -1),
        ((4, 5, 5, 3), -1),
        ((4, 3, 5, 5), 1),
        ((3, 16), 0),
        ((4, 2, 5, 3), (1, 3)),
    )
    def test_matches_the_paper_in_float64(self, shape, axis):
        x, scale, bias, dy = make_batch(shape, axis)
        expected = reference.batch_norm(x, scale, bias, dy, axis=axis)

        @self.variant
        def forward_backward(x, scale, bias):
            y, vjp = jax.vjp(lambda *args: train(*args, axis=axis), x, scale, bias)
            return y, *vjp(dy)

        y, dx, dscale, dbias = forward_backward(x, scale, bias)
        # Float32 rounding of values of order 1, and of sums of up to 100 of them.
        np.testing.assert_allclose(y, expected.y, atol=5e-6)
        np.testing.assert_allclose(dx, expected.dx, atol=5e-6)
        np.testing.assert_allclose(dscale, expected.dscale, atol=5e-5)
        np.testing.assert_allclose(dbias, expected.dbias, atol=5e-5)

    def test_output_has_mean_bias_and_the_documented_variance(self):
        x, scale, bias, _ = make_batch((4000, 3))
        epsilon = 0.5
        y = np.asarray(train(x, scale, bias, epsilon=epsilon), np.float64)
        var = x.astype(np.float64).var(0)
        np.testing.assert_allclose(y.mean(0), bias, atol=1e-5)
        np.testing.assert_allclose(
            y.var(0), scale**2 * var / (var + epsilon), rtol=1e-5
        )

    def test_gradient_is_orthogonal_to_ones_and_to_x_hat(self):
        x, scale, bias, dy = make_batch((64, 3))
        y, vjp = jax.vjp(lambda x: train(x, scale, bias, epsilon=0.0), x)
        dx = np.asarray(vjp(dy)[0], np.float64)
        x_hat = (np.asarray(y) - bias) / scale
        np.testing.assert_allclose(dx.sum(0), 0, atol=1e-5)
        np.testing.assert_allclose((dx * x_hat).sum(0), 0, atol=1e-5)

    @hypothesis.given(st.permutations(range(8)))
    @hypothesis.settings(deadline=None, max_examples=20)
    def test_permuting_the_batch_permutes_the_output(self, order):
        x, scale, bias, _ = make_batch((8, 3))
        order = np.array(order)
        np.testing.assert_allclose(
            train(x[order], scale, bias), train(x, scale, bias)[order], atol=2e-6
        )

    def test_learned_identity(self):
        x = make_batch((64, 3))[0]
        mean, var = x.mean(0), x.var(0)
        y = train(x, np.sqrt(var + 1e-5), mean)
        np.testing.assert_allclose(y, x, atol=1e-5)

    @parameterized.parameters(0.25, 100.0)
    def test_scale_of_the_weights(self, a):
        # Section 3.3: same output and du, dW smaller by the factor that W is larger.
        rng = np.random.default_rng(0)
        u, w = (rng.standard_normal(s).astype(np.float32) for s in ((64, 5), (5, 3)))

        def loss(u, w):
            return jnp.sum(jnp.sin(train(u @ w, jnp.ones(3), None, epsilon=0.0)))

        value, (du, dw) = jax.value_and_grad(loss, (0, 1))(u, w)
        value_a, (du_a, dw_a) = jax.value_and_grad(loss, (0, 1))(u, a * w)
        np.testing.assert_allclose(value_a, value, rtol=1e-4)
        np.testing.assert_allclose(du_a, du, atol=1e-5)
        np.testing.assert_allclose(dw_a * a, dw, atol=1e-4)

    def test_large_mean(self):
        x, scale, bias, dy = make_batch((256, 3), loc=2e4)  # |mean|/std = 1e4
        expected = reference.batch_norm(x, scale, bias, dy)
        y, vjp = jax.vjp(train, x, scale, bias)
        dx, dscale, _ = vjp(dy)
        # The mean itself rounds to 1e-3, which is 5e-4 std.
        np.testing.assert_allclose(y, expected.y, atol=2e-3)
        np.testing.assert_allclose(dx, expected.dx, atol=1e-3)
        np.testing.assert_allclose(dscale, expected.dscale, rtol=1e-2, atol=2e-2)

    @parameterized.parameters(jnp.bfloat16, jnp.float16)
    def test_half_precision(self, dtype):
        x, scale, bias, dy = make_batch((512, 3), loc=8.0)
        x, dy = jnp.asarray(x, dtype), jnp.asarray(dy, dtype)
        expected = reference.batch_norm(x, scale, bias, dy)
        y, vjp = jax.vjp(train, x, scale, bias)
        dx, dscale, dbias = vjp(dy)
        chex.assert_type([y, dx], dtype)
        chex.assert_type([dscale, dbias], jnp.float32)
        # One rounding of the result to `dtype`, nothing else.
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.float32(y), expected.y, rtol=eps, atol=1e-5)
        np.testing.assert_allclose(np.float32(dx), expected.dx, rtol=eps, atol=1e-5)
        np.testing.assert_allclose(dscale, expected.dscale, atol=1e-3)

    def test_complex(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((16, 3)) + 1j * rng.standard_normal((16, 3))
        x = x.astype(np.complex64)
        scale, bias = np.ones(3, np.float32), np.zeros(3, np.float32)
        weights = rng.standard_normal((16, 3)).astype(np.float32)

        def loss(function, x):
            return jnp.sum(jnp.abs(function(x, scale, bias) + 1) ** 2 * weights)

        chex.assert_trees_all_close(
            *(
                jax.jit(jax.value_and_grad(functools.partial(loss, function)))(x)
                for function in (train, plain)
            ),
            rtol=1e-4,
            atol=1e-5,
        )


class MaskTest(chex.TestCase):
    @parameterized.product(
        mask_shape=((8, 1, 1), (8, 4, 1), (8, 4, 3)), hidden=(7.0, np.nan, np.inf, 3e38)
    )
    def test_matches_the_paper_and_hides_content(self, mask_shape, hidden):
        x, scale, bias, dy = make_batch((8, 4, 3))
        mask = np.random.default_rng(1).random(mask_shape) < 0.6
        full = np.broadcast_to(mask, x.shape)
        x = np.where(full, x, np.float32(hidden))
        dy = np.where(full, dy, 0)  # The loss leaves masked elements out.
        y, vjp = jax.vjp(lambda *args: train(*args, mask=mask), x, scale, bias)
        actual = (y, *vjp(dy))
        expected = reference.batch_norm(
            np.where(full, x, 0), scale, bias, dy, mask=full
        )
        np.testing.assert_allclose(y[full], expected.y[full], atol=5e-6)
        np.testing.assert_allclose(actual[1][full], expected.dx[full], atol=5e-6)
        np.testing.assert_array_equal(actual[1][~full], 0)
        np.testing.assert_allclose(actual[2], expected.dscale, atol=5e-5)
        np.testing.assert_allclose(actual[3], expected.dbias, atol=5e-5)
        if not np.isfinite(hidden):
            bias_everywhere = np.broadcast_to(bias, x.shape)
            np.testing.assert_array_equal(y[~full], bias_everywhere[~full])

    def test_masked_elements_are_normalised_and_differentiable(self):
        x, scale, bias, dy = make_batch((8, 4, 3))
        mask = np.arange(8)[:, None, None] < 5
        expected = reference.batch_norm(x, scale, bias, dy, mask=mask)
        y, vjp = jax.vjp(lambda *args: train(*args, mask=mask), x, scale, bias)
        np.testing.assert_allclose(y, expected.y, atol=5e-6)
        np.testing.assert_allclose(vjp(dy)[0], expected.dx, atol=5e-6)

    def test_no_valid_element(self):
        x, scale, bias, dy = make_batch((8, 3))
        x[:] = np.nan
        mask = np.zeros((8, 1), bool)
        y, vjp = jax.vjp(lambda *args: train(*args, mask=mask), x, scale, bias)
        np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))
        chex.assert_tree_all_finite(vjp(dy))

    @parameterized.parameters("jvp", "vjp")
    def test_a_channel_without_a_valid_element(self, mode):
        """The mean and the variance of such a channel are the constant 0."""
        x, scale, bias, dy = make_batch()
        mask = np.ones(x.shape, bool)
        mask[:, 1] = False

        def column(x, scale, bias):
            return train(x, scale, bias, mask=mask)[:, 1]

        def expected(x, scale, bias):
            return x[:, 1] * (scale[1] / np.float32(np.sqrt(1e-5))) + bias[1]

        def derivative(function):
            if mode == "jvp":
                return jax.jvp(function, (x, scale, bias), (dy, scale, bias))
            y, vjp = jax.vjp(function, x, scale, bias)
            dx, dscale, dbias = vjp(dy[:, 1])
            return y, dx, dscale, dbias

        chex.assert_trees_all_close(
            derivative(column), derivative(expected), rtol=1e-4, atol=1e-2
        )

    def test_large_content_beside_a_small_deviation(self):
        x = (1e-12 * np.random.default_rng(0).standard_normal((16, 2))).astype("f")
        mask = np.arange(16)[:, None] < 12
        hidden = np.where(mask, x, np.float32(1e30))
        ones, dy = np.ones(2, np.float32), np.where(mask, np.float32(1), 0) * x * 1e12

        def results(x):
            function = lambda *args: train(*args, mask=mask, epsilon=0.0)  # noqa: E731
            y, vjp = jax.vjp(function, x, ones, 0 * ones)
            return jnp.where(mask, y, 0), vjp(dy)

        chex.assert_tree_all_finite(results(hidden))
        chex.assert_trees_all_close(results(hidden), results(np.where(mask, x, 0)))


class ExplicitShardingTest(parameterized.TestCase):
    def test_state_keeps_its_sharding(self):
        x = make_batch((16, 4))[0]
        mesh = jax.make_mesh((4, 2), ("data", "model"))
        sharding = jax.sharding.NamedSharding(mesh, jax.P("data", "model"))
        x = jax.device_put(x, sharding)
        expected = jaxbn.batch_norm_train(
            np.asarray(x), None, None, jaxbn.init_batch_stats(4)
        )[1]
        for spec in (jax.P(), jax.P("model")):
            stats = jax.device_put(
                jaxbn.init_batch_stats(4), jax.sharding.NamedSharding(mesh, spec)
            )
            with jax.set_mesh(mesh):
                new = jax.jit(lambda x, s: jaxbn.batch_norm_train(x, None, None, s)[1])(
                    x, stats
                )
            # The type that `lax.scan` compares, sharding included.
            assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, stats)
            chex.assert_trees_all_close(new, expected, rtol=1e-6)

    @parameterized.product(
        split=(("data", None), ("data", "model"), ("model", None)),
        channels=(None, "model"),
    )
    def test_without_set_mesh(self, split, channels):
        """Only the arrays hold the shardings, which differ for parameters and input."""
        x, scale, bias, _ = make_batch((16, 4))
        stats = jaxbn.BatchStats(bias, scale**2)
        mesh = jax.make_mesh((4, 2), ("data", "model"))
        put = lambda tree, *spec: jax.device_put(  # noqa: E731
            tree, jax.NamedSharding(mesh, jax.P(*spec))
        )
        given = put(x, *split), *put((scale, bias, stats), channels)
        for function in (jaxbn.batch_norm_train, jaxbn.batch_norm_inference):
            result = jax.jit(function)(*given)
            expected = function(x, scale, bias, stats)
            chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-6)
            plain = function(given[0], None, None, jaxbn.init_batch_stats(4))
            assert jax.tree.leaves(plain)[0].sharding.spec == jax.P(*split)
            y, *new = jax.tree.leaves(result)
            assert y.sharding.spec == jax.P(*split)
            assert all(part.sharding.spec == jax.P(channels) for part in new)

    @parameterized.parameters(False, True)
    def test_gradients_with_channels_sharded(self, masked):
        x, scale, bias, dy = make_batch((16, 4))
        mask = np.arange(16)[:, None] < 12 if masked else None
        mesh = jax.make_mesh((4, 2), ("data", "model"))
        sharding = jax.sharding.NamedSharding(mesh, jax.P("data", "model"))
        args = [jax.device_put(x, sharding), scale, bias]

        def loss(x, scale, bias):
            return jnp.sum(train(x, scale, bias, mask=mask) * dy)

        expected = reference.batch_norm(x, scale, bias, dy, mask=mask)
        with jax.set_mesh(mesh):
            dx, dscale, dbias = jax.jit(jax.grad(loss, (0, 1, 2)))(*args)
        np.testing.assert_allclose(dx, expected.dx, atol=5e-6)
        np.testing.assert_allclose(dscale, expected.dscale, atol=5e-5)
        np.testing.assert_allclose(dbias, expected.dbias, atol=5e-5)


class InferenceTest(parameterized.TestCase):
    @parameterized.parameters((1000.25, 0), (1e5, 1e-4), (123457, 1e-4), (1e4, 1))
    def test_a_large_mean_costs_no_precision(self, mean, var):
        # All of it representable, the difference from the mean exact.
        x = np.float32([[mean], [mean + 1]])
        stats = jaxbn.BatchStats(np.float32([mean]), np.float32([var]))
        y = jaxbn.batch_norm_inference(x, None, np.float32([0.5]), stats)
        expected = 0.5 + np.array([[0], [1]]) / np.sqrt(np.float32(var) + 1e-5)
        np.testing.assert_allclose(y, expected, rtol=1e-6)  # Eight roundings.

    @parameterized.parameters((0.0, 0.5), (np.inf, 0.5), (np.nan, np.nan))
    def test_degenerate_variance(self, var, expected):
        stats = jaxbn.BatchStats(np.float32([1]), np.float32([var]))
        bias = np.float32([0.5])
        y = jaxbn.batch_norm_inference(
            np.float32([[2]]), None, bias, stats, epsilon=0.0
        )
        np.testing.assert_array_equal(y, [[expected]])


class ResidualTest(parameterized.TestCase):
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_only_x_in_its_own_dtype_is_kept(self, dtype):
        x, scale, bias, _ = make_batch((64, 8, 3))
        x = jnp.asarray(x, dtype)
        mask = jnp.ones((64, 1, 1), bool)
        stats = jaxbn.init_batch_stats(3)
        for function in (
            lambda x, *affine: train(x, *affine, mask=mask),
            lambda x, *affine: jaxbn.batch_norm_inference(x, *affine, stats),
        ):
            self.assert_kept(function, x, scale, bias)

    def assert_kept(self, function, x, scale, bias):
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            jax.ad_checkpoint.print_saved_residuals(function, x, scale, bias)
        name = {"float32": "f32", "bfloat16": "bf16"}[x.dtype.name]
        large = [line for line in text.getvalue().splitlines() if "64,8,3" in line]
        self.assertEqual(large, [f"{name}[64,8,3] from the argument x"])
