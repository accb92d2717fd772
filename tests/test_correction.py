"""Relatives of BN on the same op: corrected maps, and statistics that are mixed."""

import contextlib
import io

import chex
import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxbn
from jaxbn._core import affine, normalize, reduction
from jaxbn._core.groups import as_devices

RNG = np.random.default_rng(0)
X = 1 + 2 * RNG.standard_normal((12, 3))
SCALE, BIAS = 1 + 0.3 * RNG.standard_normal(3), RNG.standard_normal(3)
WEIGHTS = RNG.standard_normal((12, 3))
RUNNING = jaxbn.BatchStats(RNG.standard_normal(3), 1 + RNG.random(3))
EPSILON = 1e-3


def renorm(moments, running):
    """Ioffe, arXiv:1702.03275, with limits that some channels reach."""
    std = jnp.sqrt(running.var + EPSILON)
    gain = jnp.sqrt(moments.var + EPSILON) / std
    return jnp.clip(gain, 0.5, 1.5), jnp.clip(
        (moments.mean - running.mean) / std, -1, 1
    )


def rows(array):
    return jnp.broadcast_to(array, X.shape)


def by_the_op(x, scale, bias, axis_name=None, activation=None):
    settings = reduction.Settings((1,), devices=as_devices(axis_name, None, None))
    output = affine.Output(EPSILON, x.dtype, activation, correct=renorm)
    return normalize.normalize(settings, output, x, scale, bias, None, None, RUNNING)[0]


def plain(x, scale, bias):
    mean, var = jnp.mean(x, 0), jnp.var(x, 0)
    moments = jaxbn.Moments(jnp.full(3, len(x)), mean, var)
    gain, shift = jax.lax.stop_gradient(renorm(moments, RUNNING))
    x_hat = (x - rows(mean)) / rows(jnp.sqrt(var + EPSILON))
    return (x_hat * rows(gain) + rows(shift)) * rows(scale) + rows(bias)


class CorrectionTest(chex.TestCase):
    def loss(self, function):
        return lambda *args: jnp.sum(jnp.sin(function(*args)) * WEIGHTS)

    @parameterized.parameters("value", "grad", "jvp", "hessian")
    def test_equals_autodiff_of_the_formula(self, mode):
        transforms = {
            "value": lambda f: f,
            "grad": lambda f: jax.grad(f, (0, 1, 2)),
            "jvp": lambda f: lambda *args: jax.jvp(f, args, args),
            "hessian": lambda f: jax.hessian(f, (0, 1, 2)),
        }
        with jax.enable_x64(True):
            args = [jnp.asarray(a) for a in (X, SCALE, BIAS)]
            actual, expected = (
                jax.jit(transforms[mode](self.loss(f)))(*args)
                for f in (by_the_op, plain)
            )
            chex.assert_trees_all_close(actual, expected, rtol=1e-8, atol=1e-10)

    def test_over_devices(self):
        with jax.enable_x64(True):
            split = jax.vmap(
                lambda x: by_the_op(x, SCALE, BIAS, axis_name="d"), axis_name="d"
            )
            y = jax.jit(split)(X.reshape(4, 3, 3)).reshape(12, 3)
            np.testing.assert_allclose(y, plain(X, SCALE, BIAS), rtol=1e-9)


def mixed(x, scale, bias):
    """Half the statistics of the batch, half those of the population."""
    moments = jaxbn.batch_moments(x)
    stats = jaxbn.BatchStats(
        0.5 * moments.mean + 0.5 * RUNNING.mean.astype(np.float32),
        0.5 * moments.var + 0.5 * RUNNING.var.astype(np.float32),
    )
    return jaxbn.batch_norm_inference(x, scale, bias, stats)


class MixedStatisticsTest(chex.TestCase):
    def loss(self, function):
        return lambda *args: jnp.sum(jnp.sin(function(*args)) * WEIGHTS)

    def test_equals_autodiff_of_the_formula(self):
        def by_hand(x, scale, bias):
            mean = 0.5 * jnp.mean(x, 0) + 0.5 * RUNNING.mean.astype(np.float32)
            var = 0.5 * jnp.var(x, 0) + 0.5 * RUNNING.var.astype(np.float32)
            x_hat = (x - rows(mean)) / rows(jnp.sqrt(var + 1e-5))
            return x_hat * rows(scale) + rows(bias)

        args = [jnp.asarray(a, jnp.float32) for a in (X, SCALE, BIAS)]
        actual, expected = (
            jax.jit(jax.grad(self.loss(function), (0, 1, 2)))(*args)
            for function in (mixed, by_hand)
        )
        chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)

    def test_only_x_is_kept(self):
        x = jnp.asarray(RNG.standard_normal((64, 3)), jnp.float32)
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            jax.ad_checkpoint.print_saved_residuals(mixed, x, jnp.ones(3), jnp.ones(3))
        large = [line for line in text.getvalue().splitlines() if "64,3" in line]
        self.assertEqual(large, ["f32[64,3] from the argument x"])
