"""In place and recomputed: the same derivatives from less memory."""

import functools
import pickle

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxbn
from experiments.compilers.kept import kept_bytes
from jaxbn import linen
from tests import styles

SCALE, BIAS = np.float32([1, -2, 0.5]), np.float32([0, 1, -1])


def make_batch(shape=(16, 4, 3)):
    x, dy, dx = np.random.default_rng(0).standard_normal((3, *shape), np.float32)
    return 1 + x, dy, dx


def train(x, scale, bias, **options):
    stats = jaxbn.init_batch_stats(3)
    return jaxbn.batch_norm_train(x, scale, bias, stats, **options)[0]


@pytest.mark.parametrize("activation", [None, "leaky_relu"])
@pytest.mark.parametrize("style", styles.every([*styles.MAPPED, *styles.JIT]))
def test_every_style(style, activation):
    x, dy, _ = make_batch((16, 3))
    mask, stats = np.ones((16, 1), bool), jaxbn.init_batch_stats(3)
    args = x, mask, dy, SCALE, BIAS, stats
    expected = styles.run("single device", *args, activation=activation)
    actual = styles.run(style, *args, activation=activation, in_place=True)
    chex.assert_trees_all_close(actual, expected, atol=1e-4)


class InPlaceTest(chex.TestCase):
    @parameterized.product(activation=(None, "leaky_relu"), masked=(False, True))
    def test_equals_the_default_in_both_modes(self, activation, masked):
        x, dy, dx = make_batch()
        options = {"activation": activation}
        if masked:
            options["mask"] = np.arange(16)[:, None, None] < 9
        results = []
        for in_place in (False, True):
            function = functools.partial(train, in_place=in_place, **options)

            @jax.jit
            def both_modes(*args, function=function):
                y, vjp = jax.vjp(function, *args)
                tangent = jax.jvp(function, args, (dx, SCALE, BIAS))[1]
                return y, vjp(dy), tangent

            results.append(both_modes(x, SCALE, BIAS))
        # x_hat is solved from y with |bias / scale| = 2 times the rounding, and from
        # 0.01 * y below 0; sums of 64 such.
        chex.assert_trees_all_close(*results, atol=1e-4)

    @parameterized.product(activation=(None, "leaky_relu"), masked=(False, True))
    def test_with_a_residual(self, activation, masked):
        x, dy, residual = make_batch()
        options = {"activation": activation}
        if masked:
            options["mask"] = np.arange(16)[:, None, None] < 9

        def derivative(in_place):
            def function(x, residual, scale, bias):
                return train(
                    x, scale, bias, residual=residual, in_place=in_place, **options
                )

            @jax.jit
            def both_modes(*primals):
                y, vjp = jax.vjp(function, *primals)
                return y, vjp(dy), jax.jvp(function, primals, (dy, x, BIAS, SCALE))[1]

            return both_modes(x, residual, SCALE, BIAS)

        # As above, and the rounding of a residual of up to 4, over |scale| >= 0.5.
        chex.assert_trees_all_close(derivative(True), derivative(False), atol=3e-4)

    @parameterized.product(
        content=((np.float32, np.nan), (np.float32, 1e30), (np.float16, 6e4)),
        activation=(None, "leaky_relu"),
    )
    def test_content_outside_the_mask(self, content, activation):
        dtype, value = content
        x, dy, _ = make_batch((16, 3))
        x, mask = x.astype(dtype), np.arange(16)[:, None] != 3
        x[3] = value
        # NaN becomes the bias, a constant, whose cotangent may be anything; the others
        # overflow in y, which the loss then leaves out.
        dy = jnp.asarray(dy if np.isnan(value) else dy * mask, dtype)
        scale = SCALE if dtype == np.float16 else SCALE * 1e10

        def gradients(in_place):
            options = {"mask": mask, "in_place": in_place, "activation": activation}
            function = functools.partial(train, **options)
            return jax.vjp(function, x, scale, BIAS)[1](dy)

        expected, actual = map(gradients, (False, True))
        chex.assert_tree_all_finite(actual)
        # Four roundings of the dtype, of terms that reach 10 times the result.
        rtol = 40 * float(jnp.finfo(dtype).eps)
        for a, b in zip(actual, expected, strict=True):
            chex.assert_trees_all_close(a, b, atol=rtol * float(jnp.max(jnp.abs(b))))

    @parameterized.parameters(None, "leaky_relu")
    def test_second_derivative(self, activation):
        x, dy, dx = make_batch((6, 3))

        def hessian_product(in_place):
            def loss(x):
                y = train(x, SCALE, BIAS, activation=activation, in_place=in_place)
                return jnp.sum(jnp.square(y) * dy)

            return jax.jvp(jax.grad(loss), (x,), (dx,))[1]

        chex.assert_trees_all_close(*map(hessian_product, (False, True)), atol=2e-3)

    @parameterized.parameters(None, "leaky_relu")
    def test_hessian_by_scale(self, activation):
        """Compares with differences of the gradient; a scale of 0 gives 0."""
        x, dy, _ = make_batch((6, 3))
        scale = np.float64([0, 1, -2])

        def gradient(scale):
            def loss(scale):
                y = train(x, scale, BIAS, activation=activation, in_place=True)
                return jnp.sum(jnp.square(y) * dy)

            return jax.grad(loss)(scale)

        with jax.enable_x64(True):
            x, dy = np.float64(x), np.float64(dy)
            gradient = jax.jit(gradient)
            actual = jax.jit(jax.jacobian(gradient))(scale)
            chex.assert_tree_all_finite(actual)
            np.testing.assert_array_equal(actual[0], 0)
            for i in (1, 2):
                step = np.zeros(3)
                step[i] = 1e-6
                numeric = (gradient(scale + step) - gradient(scale - step)) / 2e-6
                np.testing.assert_allclose(actual[i], numeric, rtol=1e-5, atol=1e-6)

    def test_bfloat16_within_its_rounding(self):
        x, dy, _ = (jnp.asarray(a, jnp.bfloat16) for a in make_batch())

        def gradients(in_place):
            function = functools.partial(train, in_place=in_place)
            return jax.vjp(function, x, SCALE, BIAS)[1](dy)

        # x_hat within 3 * 2^-8 * (1 + 2) of itself in a sum of 64 of random sign.
        chex.assert_trees_all_close(*map(gradients, (False, True)), atol=0.2)

    def test_groups(self):
        x, dy, _ = make_batch()

        def gradients(in_place):
            function = functools.partial(train, in_place=in_place, group_size=4)
            return jax.vjp(function, x, SCALE, BIAS)[1](dy)

        chex.assert_trees_all_close(*map(gradients, (False, True)), atol=1e-4)

    def test_a_scale_of_0_gets_no_gradient_and_gives_none(self):
        x, dy, _ = make_batch()
        scale = np.float32([0, 1, 1])
        function = functools.partial(train, in_place=True, activation="leaky_relu")
        dx, dscale, _ = jax.vjp(function, x, scale, BIAS)[1](dy)
        chex.assert_tree_all_finite((dx, dscale))
        assert dscale[0] == 0
        np.testing.assert_array_equal(dx[..., 0], 0)


class Block(nn.Module):
    options: dict

    @nn.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False, **self.options)(x)
        return nn.Dense(64, use_bias=False)(x)


class MemoryTest(chex.TestCase):
    """Measures a layer and the product after it, in sizes of the activation."""

    def kept(self, options, policy=None):
        block = Block if policy is None else nn.remat(Block, policy=policy)
        net, x = block(options), jnp.ones((1024, 64))
        variables = net.init(jax.random.key(0), x)

        def apply(params, x):
            return net.apply(variables | params, x, mutable=["batch_stats"])[0]

        params = {"params": variables["params"]}
        kernel = 64 * 64 * 4
        return round((kept_bytes(apply, params, x) - kernel) / x.nbytes, 1)

    @pytest.mark.exhaustive
    def test_what_is_kept(self):
        policy = jaxbn.remat_policy
        assert self.kept({"activation": "leaky_relu"}) == 2
        assert self.kept({"activation": "leaky_relu", "in_place": True}) == 1
        for activation in ("relu", "silu", "gelu"):
            assert self.kept({"activation": activation}, policy) == 1

    def test_the_policy_can_be_pickled(self):
        policy = jaxbn.remat_policy
        assert pickle.loads(pickle.dumps(policy)) is policy

    def test_recomputation_repeats_no_collective(self):
        x, dy, _ = make_batch((8, 16, 3))

        def count(wrap):
            def on_device(x, dy):
                function = wrap(
                    lambda x: train(x, SCALE, BIAS, axis_name="d", activation="silu")
                )
                return jax.vjp(function, x)[1](dy)

            mapped = jax.pmap(on_device, axis_name="d")
            return str(jax.make_jaxpr(mapped)(x, dy)).count("psum")

        policy = jaxbn.remat_policy
        expected = count(lambda function: function)
        assert count(functools.partial(jax.checkpoint, policy=policy)) == expected
        assert count(jax.checkpoint) > expected  # Without the policy they repeat.
