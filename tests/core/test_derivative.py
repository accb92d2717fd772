import chex
import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from tests.op import make_batch, plain, train


class DerivativeTest(chex.TestCase):
    """Compares the rule with autodiff of the plain formula; float64 avoids rounding."""

    def setUp(self):
        super().setUp()
        x, scale, bias, weights = make_batch((6, 2))
        self.args = [np.float64(a) for a in (x, scale, bias)]
        self.weights = np.float64(weights)

    def loss(self, function):
        return lambda *args: jnp.sum(jnp.sin(function(*args)) * self.weights)

    def assert_same(self, transform, rtol=1e-8, atol=1e-10):
        with jax.enable_x64(True):
            chex.assert_trees_all_close(
                jax.jit(transform(self.loss(train)))(*self.args),
                jax.jit(transform(self.loss(plain)))(*self.args),
                rtol=rtol,
                atol=atol,
            )

    def test_grad(self):
        self.assert_same(lambda f: jax.grad(f, (0, 1, 2)))

    def test_jvp(self):
        def transform(f):
            return lambda *args: jax.jvp(f, args, tuple(a[::-1] for a in args))

        self.assert_same(transform)

    def test_forward_mode_jacobian(self):
        self.assert_same(lambda f: jax.jacfwd(f, (0, 1, 2)))

    def test_hessian(self):
        self.assert_same(lambda f: jax.hessian(f, (0, 1, 2)))

    def test_reverse_over_reverse(self):
        def transform(f):
            def norm(*args):
                grads = jax.grad(f, (0, 1, 2))(*args)
                return sum(jnp.sum(g**2) for g in grads)

            return jax.grad(norm, (0, 1, 2))

        self.assert_same(transform)

    @pytest.mark.exhaustive
    def test_third_order(self):
        def transform(f):
            def directional(*args):
                return jax.jvp(f, args, args)[1]

            return lambda *args: jax.hessian(directional)(*args)

        self.assert_same(transform, rtol=1e-7, atol=1e-8)

    def test_vmap_of_grad(self):
        def transform(f):
            mapped = jax.vmap(jax.grad(f), (0, None, None))
            return lambda x, *rest: mapped(jnp.stack([x, x[::-1] * 3]), *rest)

        self.assert_same(transform)

    @pytest.mark.exhaustive
    def test_numerically(self):
        with jax.enable_x64(True):
            chex.assert_numerical_grads(
                jax.jit(self.loss(train)), tuple(map(jnp.asarray, self.args)), order=2
            )

    def test_under_remat_and_scan(self):
        def transform(f):
            def repeated(x, scale, bias):
                def body(total, factor):
                    return total + jax.checkpoint(f)(factor * x, scale, bias), None

                return jax.lax.scan(body, 0.0, jnp.arange(1.0, 3.0))[0]

            return jax.grad(repeated, (0, 1, 2))

        self.assert_same(transform)


class ShiftTest(parameterized.TestCase):
    @parameterized.parameters(1.0, 1j, 1 - 2j)
    def test_a_shift_of_a_channel_changes_nothing(self, shift):
        """The mean is large; stored as one float it would leave 6e-4 of the shift."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((500, 2)) + 1e4 / 3
        if np.iscomplexobj(shift):
            x = x + 1j * (rng.standard_normal((500, 2)) - 1e4 / 7)
        x = jnp.asarray(x, jnp.complex64 if np.iscomplexobj(x) else jnp.float32)
        ones = jnp.ones(2)
        _, tangent = jax.jit(
            lambda x, dx: jax.jvp(lambda x: train(x, ones, ones), (x,), (dx,))
        )(x, jnp.full_like(x, shift))
        np.testing.assert_allclose(tangent, 0, atol=2e-6)


class ConstantTest(parameterized.TestCase):
    @parameterized.product(value=(1.1, 1e6), epsilon=(0.0, 1e-5))
    def test_a_constant_channel_gets_no_gradient(self, value, epsilon):
        # With the raw sum x * dy the gradient was -6325.
        rng = np.random.default_rng(0)
        x = np.full((3000, 2), value, np.float32)
        dy = (1 + rng.standard_normal(x.shape)).astype(np.float32)
        y, vjp = jax.vjp(
            lambda *args: train(*args, epsilon=epsilon), x, np.ones(2), np.ones(2)
        )
        dx, dscale, _ = vjp(dy)
        np.testing.assert_array_equal(y, 1)
        np.testing.assert_allclose(dscale, 0, atol=1e-4)
        chex.assert_tree_all_finite(dx)
