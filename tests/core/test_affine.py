"""Normalise, add and activate as one op: equal to three, and nothing more is kept."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxbn
from experiments.compilers.kept import kept_bytes
from jaxbn import linen
from jaxbn._core import affine

ACTIVATIONS = tuple(affine.ACTIVATIONS)


def make_batch(shape=(6, 4, 3)):
    rng = np.random.default_rng(0)
    x, residual, dy = rng.standard_normal((3, *shape)).astype(np.float32)
    return 1 + x, residual, dy, np.float32([1, 2, 0.5]), np.float32([0, 1, -1])


def train(x, scale, bias, **options):
    return jaxbn.batch_norm_train(x, scale, bias, jaxbn.init_batch_stats(3), **options)[
        0
    ]


def fused(activation, **options):
    def call(x, residual, scale, bias):
        return train(
            x, scale, bias, residual=residual, activation=activation, **options
        )

    return call


def apart(activation, **options):
    def call(x, residual, scale, bias):
        y = train(x, scale, bias, **options) + residual
        return affine.ACTIVATIONS[activation](y)

    return call


class ActivationTest(chex.TestCase):
    @parameterized.product(activation=ACTIVATIONS, masked=(False, True))
    def test_equals_three_ops_in_both_modes(self, activation, masked):
        x, residual, dy, scale, bias = make_batch()
        options = {"mask": np.arange(6)[:, None, None] < 4} if masked else {}
        args, tangents = (x, residual, scale, bias), (dy, x, scale, bias)
        results = []
        for make in (fused, apart):
            function = make(activation, **options)

            @jax.jit
            def both_modes(args, tangents, function=function):
                y, vjp = jax.vjp(function, *args)
                return y, vjp(dy), jax.jvp(function, args, tangents)[1]

            results.append(both_modes(args, tangents))
        # Rounding of values up to 20, in another order.
        chex.assert_trees_all_close(*results, atol=3e-5)

    @parameterized.parameters("silu", "gelu")
    def test_second_derivative(self, activation):
        x, residual, dy, scale, bias = make_batch((4, 3))

        def hessian_product(function):
            def loss(x, residual):
                return jnp.sum(function(x, residual, scale, bias) * dy)

            gradient = jax.grad(loss, (0, 1))
            along = jax.jit(lambda *args: jax.jvp(gradient, args, (dy, x))[1])
            return along(x, residual)

        chex.assert_trees_all_close(
            *(hessian_product(make(activation)) for make in (fused, apart)),
            atol=1e-4,
        )

    def test_without_residual_and_in_groups(self):
        x, _, _, scale, bias = make_batch()
        for options in ({}, {"group_size": 2}):
            chex.assert_trees_all_close(
                train(x, scale, bias, activation="relu", **options),
                nn.relu(train(x, scale, bias, **options)),
                atol=1e-6,
            )

    def test_groups_with_residual(self):
        x, residual, _, scale, bias = make_batch()
        chex.assert_trees_all_close(
            fused("relu", group_size=2)(x, residual, scale, bias),
            apart("relu", group_size=2)(x, residual, scale, bias),
            atol=1e-6,
        )

    def test_inference(self):
        x, residual, _, scale, bias = make_batch()
        stats = jaxbn.init_batch_stats(3)
        y = jaxbn.batch_norm_inference(x, scale, bias, stats)
        chex.assert_trees_all_close(
            jaxbn.batch_norm_inference(
                x, scale, bias, stats, residual=residual, activation="silu"
            ),
            nn.silu(y + residual),
            atol=1e-6,
        )

    def test_layer(self):
        x, residual, *_ = make_batch()
        for use_running_average in (False, True):
            layer = linen.BatchNorm(use_running_average, activation="relu")
            plain = linen.BatchNorm(use_running_average)
            variables = layer.init(jax.random.key(0), x)
            update = ["batch_stats"]
            y, new = layer.apply(variables, x, residual=residual, mutable=update)
            expected, stats = plain.apply(variables, x, mutable=update)
            chex.assert_trees_all_close(y, nn.relu(expected + residual), atol=1e-6)
            chex.assert_trees_all_equal(new, stats)


class KeptTest(chex.TestCase):
    @parameterized.product(
        activation=(None, *ACTIVATIONS), dtype=("float32", "bfloat16")
    )
    def test_the_input_in_its_own_dtype_and_nothing_of_its_size(
        self, activation, dtype
    ):
        x = jnp.zeros((256, 16, 3), dtype)
        affine = jnp.ones(3), jnp.zeros(3)
        kept = kept_bytes(lambda x, *a: train(x, *a, activation=activation), x, *affine)
        assert x.nbytes <= kept < 1.05 * x.nbytes

    def test_a_residual_is_kept_only_for_an_activation(self):
        x = residual = jnp.zeros((256, 16, 3))
        affine = jnp.ones(3), jnp.zeros(3)
        for activation, arrays in ((None, 1), ("relu", 2)):
            function = fused(activation)
            kept = kept_bytes(function, x, residual, *affine)
            assert arrays * x.nbytes <= kept < (arrays + 0.05) * x.nbytes
