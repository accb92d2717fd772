"""One contract for every form of the variance, and which form each platform takes."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxbn
from jaxbn._core import moments, reduction, variance
from tests import reference
from tests.reference import assert_moments_close

STABLE = ("checked", "two_pass", "sliced", "shifted")


def make(form, x, mask=None, axes=None):
    feature_axes = (x.ndim - 1,) if axes is None else axes
    how = reduction.Settings(feature_axes, form)
    return moments.count_per_channel(_make(how, jnp.asarray(x), mask))


@functools.partial(jax.jit, static_argnums=0)
def _make(how, x, mask):
    return variance.local_moments(how, x, mask)


def assert_close(actual, expected, rtol=1e-4):
    np.testing.assert_allclose(actual.var, expected.var, rtol=rtol, atol=1e-20)
    mean = np.float64(actual.mean) + np.float64(actual.tail)
    # The rounding of float32 sums of values about the mean, and of values of its size.
    slack = 1e-5 * np.sqrt(expected.var) + 2e-7 * np.abs(expected.mean) + 1e-30
    assert np.all(np.abs(mean - expected.mean) <= slack)


class ContractTest(chex.TestCase):
    @parameterized.product(
        form=STABLE,
        shape=((64, 5), (16, 8, 8, 5), (2, 5, 7, 5), (4, 1000, 5)),
    )
    def test_within_1e_4_up_to_a_ratio_of_1e4(self, form, shape):
        # A channel of each, and all channels alike, for the check of all together.
        locs = np.float64([0, 8.5, 1e2, 1e3, 1e4])
        noise = np.random.default_rng(0).standard_normal(shape)
        for loc in (locs, *locs):
            x = (loc + noise).astype(np.float32)
            assert_close(make(form, x), reference.moments(x))

    @parameterized.product(form=STABLE, mask_shape=((16, 1, 1, 1), (16, 8, 8, 3)))
    def test_masked(self, form, mask_shape):
        rng = np.random.default_rng(0)
        x = (1e4 + rng.standard_normal((16, 8, 8, 3))).astype(np.float32)
        mask = rng.random(mask_shape) < 0.6
        full = np.broadcast_to(mask, x.shape)
        expected = reference.moments(x, mask=full)
        for hidden in (0.0, np.nan, np.inf, 3e38):
            actual = make(form, np.where(full, x, np.float32(hidden)), mask)
            np.testing.assert_array_equal(actual.count, expected.count)
            assert_close(actual, expected)

    @parameterized.product(
        form=STABLE, values=((1e19, 1e17), (0.0, 1e36), (3e38, 0.0), (1e38, 1e38))
    )
    def test_overflow_is_infinite_and_never_nan(self, form, values):
        loc, std = values
        x = loc + std * np.random.default_rng(0).standard_normal((64, 8, 2))
        x = np.clip(x, -3e38, 3e38).astype(np.float32)
        actual = make(form, x)
        assert not np.any(np.isnan(actual.var))
        assert np.all(np.isfinite(actual.mean))
        expected = reference.moments(x)
        # The squares of differences of up to 4 std fit into float32.
        if 0 < expected.var.max() < 1e37:
            assert_close(actual, expected)

    @parameterized.product(
        form=STABLE, n=(3, 7, 100, 1000), value=(1.1, -1 / 3, 1e6, 3e18)
    )
    def test_a_constant_channel_has_no_variance(self, form, n, value):
        x = np.full((n, 4, 1), value, np.float32)
        actual = make(form, x)
        np.testing.assert_array_equal(actual.var, 0)
        np.testing.assert_allclose(actual.mean, x[0, 0], rtol=2e-7)

    @parameterized.product(form=STABLE, content=(np.nan, np.inf))
    def test_what_is_not_finite_shows(self, form, content):
        x = np.ones((8, 8, 1), np.float32)
        x[3, 4] = content
        assert not np.all(np.isfinite(make(form, x).var))

    @parameterized.parameters(*STABLE)
    def test_channels_anywhere(self, form):
        x = np.random.default_rng(0).standard_normal((4, 3, 8, 6)).astype(np.float32)
        assert_close(make(form, x, axes=(1,)), reference.moments(x, axis=1))
        assert_close(make(form, x, axes=(0, 3)), reference.moments(x, axis=(0, 3)))

    @parameterized.parameters(*STABLE)
    def test_float64(self, form):
        with jax.enable_x64(True):
            x = 1e7 + np.random.default_rng(0).standard_normal((64, 8, 2))
            actual = make(form, x)
            chex.assert_type([actual.mean, actual.var, actual.tail], jnp.float64)
            np.testing.assert_allclose(actual.var, x.var((0, 1)), rtol=1e-8)

    @parameterized.parameters(*STABLE)
    def test_half_precision_of_its_own_moments(self, form):
        x = np.random.default_rng(0).standard_normal((64, 8, 2)).astype(np.float16)
        how = reduction.Settings((2,), form, jnp.dtype(jnp.float16))
        actual = variance.local_moments(how, jnp.asarray(x), None)
        chex.assert_type([actual.mean, actual.var, actual.tail], jnp.float16)
        np.testing.assert_allclose(actual.var, reference.moments(x).var, rtol=1e-2)


def test_slices_are_added_before_they_are_summed():
    """A spatial axis is split by its largest divisor up to 8, a batch axis never."""
    for shape, slices in (
        ((4, 14, 3), 7),
        ((4, 16, 3), 8),
        ((4, 13, 3), 1),
        ((16, 3), 1),
    ):
        text = str(jax.make_jaxpr(functools.partial(make, "sliced"))(np.ones(shape)))
        (found,) = re.findall(r"= split\[", text) or [""]
        sizes = text.partition("sizes=")[2].partition("\n")[0]
        assert (sizes.count(",") + 1 if found else 1) == slices, shape


class ShiftTest(parameterized.TestCase):
    """Tests the error bound of `shifted` with the worst data for it."""

    @parameterized.parameters(8, 56, 64, 112, 500)
    def test_a_part_far_from_the_rest_loses_no_more_than_its_share(self, size):
        # The part that gives the shift holds all of the variance: |mean - s|^2 / var
        # takes its largest value, about size over that of the part.
        rng = np.random.default_rng(0)
        x = rng.standard_normal((4, size, 2)) * 1e-3
        part = math.ceil(size / 64)
        x[:, :part] += 1e4
        x = x.astype(np.float32)
        expected = reference.moments(x)
        shift = x[:, :part].astype(np.float64).mean((0, 1))
        ratio = (shift - expected.mean) ** 2 / expected.var
        assert np.all(ratio <= size / part)
        assert np.all(ratio > 0.9 * (size / part - 1))  # It is as bad as it gets.
        actual = make("shifted", x)
        # At most 64 times the rounding of a float32 sum of a few thousand values.
        np.testing.assert_allclose(actual.var, expected.var, rtol=64 * 1e-6)

    def test_takes_a_part_of_one_axis_that_is_not_sharded(self):
        mesh = jax.make_mesh((4, 2), ("data", "space"))
        x = 1e3 + np.random.default_rng(0).standard_normal((8, 6, 4, 3))
        x = x.astype(np.float32)
        for spec in (
            jax.P("data"),
            jax.P("data", "space"),
            jax.P("data", None, "space"),
        ):
            sharding = jax.sharding.NamedSharding(mesh, spec)
            for form in STABLE:
                actual = make(form, jax.device_put(x, sharding))
                assert_close(actual, reference.moments(x))


class PlatformTest(parameterized.TestCase):
    def conditionals(self, platform, shape, dtype=jnp.float32, **options):
        x = jax.ShapeDtypeStruct(shape, dtype)
        stats = jaxbn.init_batch_stats(shape[-1])

        def train(x):
            return jaxbn.batch_norm_train(x, None, None, stats, **options)[0]

        lowered = jax.jit(train).trace(x).lower(lowering_platforms=(platform,))
        text = lowered.as_text()
        # Others are constant, and choose the platform.
        on_booleans = re.findall(r"%(\w+) = stablehlo.convert .*tensor<i1>\)? ->", text)
        cases = re.findall(r'"stablehlo.case"\(%(\w+)\)', text)
        return sum(name in on_booleans for name in cases)

    @parameterized.parameters("cuda", "rocm")
    def test_no_conditional_on_a_gpu(self, platform):
        for shape in ((8, 4), (64, 56, 56, 256)):
            assert self.conditionals(platform, shape) == 0

    def test_on_a_tpu_only_where_x_is_large(self):
        large = 64, 56, 56, 256
        assert self.conditionals("tpu", (8, 14, 14, 256)) == 0
        assert self.conditionals("tpu", large) == 1
        assert self.conditionals("tpu", large, variance="unconditional") == 0

    @parameterized.parameters(jnp.bfloat16, jnp.float16)
    def test_on_a_tpu_never_in_half_precision(self, dtype):
        assert self.conditionals("tpu", (64, 112, 112, 64), dtype) == 0
        assert self.conditionals("tpu", (2**20, 64), dtype) == 1  # Too long an axis.

    def test_a_mesh_in_context_splits_x(self):
        large = 64, 56, 56, 256
        for kind, number in (("Auto", 0), ("Manual", 1)):
            axis_types = (getattr(jax.sharding.AxisType, kind),)
            mesh = jax.make_mesh((8,), ("d",), axis_types=axis_types)
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                assert self.conditionals("tpu", large) == number
                assert self.conditionals("tpu", (512, *large[1:])) == 1

    def test_one_on_a_cpu(self):
        assert self.conditionals("cpu", (8, 14, 14, 256)) == 1

    @parameterized.parameters("cpu", "cuda", "tpu")
    def test_none_for_groups_of_examples(self, platform):
        assert self.conditionals(platform, (64, 56, 56, 256), group_size=8) == 0

    @parameterized.parameters("cuda", "tpu")
    def test_no_barrier_in_the_backward_pass(self, platform):
        x = jnp.ones((64, 8, 8, 4))
        stats = jaxbn.init_batch_stats(4)

        def loss(x, scale):
            y, _ = jaxbn.batch_norm_train(x, scale, None, stats, activation="relu")
            return jnp.sum(y**2)

        traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, jnp.ones(4))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "optimization_barrier" not in text


def test_masked_nan_has_no_derivative():
    x = jnp.arange(8.0).reshape(4, 2).at[3].set(jnp.nan)
    mask = np.arange(4)[:, None] < 3

    def var(x):
        how = reduction.Settings((1,), "two_pass")
        return jnp.sum(variance.local_moments(how, x, mask).var)

    gradient = jax.jit(jax.grad(var))(x)
    np.testing.assert_array_equal(gradient[3], 0)
    np.testing.assert_allclose(gradient[:3], [[-4 / 3] * 2, [0] * 2, [4 / 3] * 2])


class BatchMomentsTest(chex.TestCase):
    def test_fast_variance_cancels_and_the_default_does_not(self):
        x = (1e4 + jax.random.normal(jax.random.key(0), (4096, 1))).astype(jnp.float32)
        fast = variance.local_moments(reduction.Settings((1,), "fast"), x, None)
        stable = variance.local_moments(reduction.Settings((1,)), x, None)
        assert abs(float(fast.var[0]) - 1) > 0.5
        assert abs(float(stable.var[0]) - 1) < 0.1

    @parameterized.parameters(0.0, 1e2, 1e4)
    def test_two_passes_are_accurate_without_a_branch(self, loc):
        x = loc + np.random.default_rng(0).standard_normal((4096, 3))
        x = x.astype(np.float32)
        mask = np.arange(4096)[:, None] < 3000
        for m in (None, mask):
            how = reduction.Settings((1,), "two_pass")
            actual = moments.count_per_channel(variance.local_moments(how, x, m))
            assert_moments_close(actual, reference.moments(x, mask=m))
