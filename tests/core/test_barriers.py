from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxbn
from jaxbn._core import barriers


class WidenedAloneTest(chex.TestCase):
    """On the CPU each sum reads half-precision input alone, elsewhere both together."""

    def lower(self, platform, dtype):
        def function(x):
            return barriers.widened_alone(x, x)

        traced = jax.jit(function).trace(jnp.ones((8, 3), dtype))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    @parameterized.parameters(
        ("cpu", "bfloat16", True), ("cuda", "bfloat16", False),
        ("tpu", "bfloat16", False), ("cpu", "float32", False),
    )  # fmt: skip
    def test_form_of_each_platform(self, platform, dtype, barrier):
        text = self.lower(platform, dtype)
        self.assertEqual("optimization_barrier" in text, barrier)

    @pytest.mark.exhaustive
    @parameterized.parameters("jit", "grad", "vmap")
    def test_forms_are_equal(self, transform):
        x = np.random.default_rng(0).normal(1, 1, (4, 8, 3))
        x = jnp.asarray(x, jnp.bfloat16)
        one = {
            "jit": jax.jit(jaxbn.batch_moments),
            "grad": jax.grad(lambda x: jnp.sum(jaxbn.batch_moments(x).var)),
            "vmap": jax.vmap(jaxbn.batch_moments),
        }[transform]
        apart = one(x)
        with mock.patch.object(barriers, "widened_alone", lambda *arrays: arrays):
            jax.clear_caches()
            together = one(x)
        chex.assert_trees_all_close(apart, together, rtol=1e-6)  # Order of summation.


class RoundedTest(parameterized.TestCase):
    """XLA:GPU keeps an output in its own dtype where something later reads it."""

    @parameterized.parameters(
        # Options, with a residual, barriers on a GPU with and without a backward pass.
        ({"activation": "relu"}, False, 0, 0),
        ({"activation": "relu"}, True, 1, 1),
        ({}, True, 0, 0),
        ({"in_place": True}, False, 1, 0),
        ({"in_place": True, "activation": "leaky_relu"}, True, 1, 1),
    )
    def test_only_on_a_gpu(self, options, residual, backward, forward):
        x = jnp.ones((64, 8, 8, 4), jnp.bfloat16)
        stats = jaxbn.init_batch_stats(4)
        given = {"residual": x} if residual else {}

        def loss(x):
            y, _ = jaxbn.batch_norm_train(x, None, None, stats, **given, **options)
            return jnp.sum(y.astype(jnp.float32) ** 2)

        def inference(x):
            activation = options.get("activation")
            return jaxbn.batch_norm_inference(
                x, None, None, stats, **given, activation=activation
            )

        for function, platform, expected in (
            (jax.grad(loss), "cuda", backward),
            (jax.grad(loss), "tpu", 0),
            (loss, "cuda", forward),
            (inference, "cuda", forward),
            (inference, "tpu", 0),
        ):
            traced = jax.jit(function).trace(x)
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert text.count("optimization_barrier") == expected
