"""The sums of half-precision numbers are exact, and so are the moments from them."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxbn
from jaxbn._core import collectives, exact_sums, moments, reduction, variance
from tests import reference

DTYPES = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}


def exact(x, mask=None, feature_axes=None):
    """The moments of half-precision numbers by the form, and those in float64."""
    feature_axes = (x.ndim - 1,) if feature_axes is None else feature_axes
    settings = reduction.Settings(feature_axes, "exact")
    actual = moments.count_per_channel(_exact(settings, x, mask))
    return actual, right(x, mask, feature_axes)


def right(x, mask=None, feature_axes=(-1,)):
    mask = None if mask is None else np.broadcast_to(mask, x.shape)
    return reference.moments(np.asarray(x, np.float64), axis=feature_axes, mask=mask)


@functools.partial(jax.jit, static_argnums=0)
def _exact(settings, x, mask):
    return variance.local_moments(settings, x, mask)


def assert_exact(actual, expected):
    np.testing.assert_array_equal(actual.count, expected.count)
    # Where the mean is small, the sums are of terms of many sizes, and round as always.
    np.testing.assert_allclose(actual.var, expected.var, rtol=1e-5, atol=1e-30)
    slack = 1e-6 * np.sqrt(expected.var) + 1e-7 * np.abs(expected.mean) + 1e-30
    assert np.all(np.abs(actual.mean - expected.mean) <= slack)


def numbers(shape, ratio, scale=1.0, dtype=jnp.bfloat16, seed=0):
    noise = np.random.default_rng(seed).standard_normal(shape)
    channels = np.resize([1, 1.3, -0.7, -1.9, 3.0], shape[-1])
    return jnp.asarray((ratio + noise) * channels * scale, dtype)


# One level; several; one of [N, C]; more than 2**15 elements; sizes that are no
# multiples of powers of two, so that the count has many digits.
SHAPES = [(64, 14, 14, 3), (16, 56, 56, 3), (5000, 3), (3, 200, 210, 2), (7, 61, 83, 2)]


CASES = [
    (name, shape)
    for name, longest in (("bfloat16", 2**15), ("float16", 2**12))
    for shape in SHAPES
    if max(shape) <= longest
]


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_equals_float64(name, shape):
    for ratio in (0, 1, 8.5, 100, 250):
        for scale in (1e-10, 1.0, 1e10) if name == "bfloat16" else (1.0,):
            x = numbers(shape, ratio, scale, DTYPES[name])
            assert_exact(*exact(x))


@hypothesis.given(
    mean=st.floats(-1e6, 1e6, allow_subnormal=False),
    std=st.floats(0, 1e3, allow_subnormal=False),
    seed=st.integers(0, 1000),
    mask=st.sampled_from([None, (32, 1, 1, 1), (32, 12, 10, 1), (32, 12, 10, 3)]),
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_any_mean_and_mask(mean, std, seed, mask):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(mean + std * rng.standard_normal((32, 12, 10, 3)), jnp.bfloat16)
    if mask is not None:
        mask = rng.random(mask) < rng.random()
    assert_exact(*exact(x, mask))


@pytest.mark.parametrize("content", [np.nan, np.inf, 3e38])
def test_masked_elements_do_not_count(content):
    x = numbers((16, 8, 8, 3), 100)
    mask = np.random.default_rng(0).random((16, 8, 8, 3)) < 0.6
    actual, _ = exact(jnp.where(mask, x, content), mask)
    assert_exact(actual, exact(x, mask)[1])


@pytest.mark.parametrize("feature_axes", [(1,), (0, 3), (0,)])
def test_channels_anywhere(feature_axes):
    x = jnp.asarray(50 + np.random.default_rng(0).standard_normal((4, 3, 40, 6)))
    assert_exact(*exact(x.astype(jnp.bfloat16), feature_axes=feature_axes))


@pytest.mark.parametrize("value", [1.1, -1 / 3, 1e6, 3e15, 1e-12, 0.0])
@pytest.mark.parametrize("shape", [(1000, 1), (40, 77, 33, 1)], ids=str)
def test_a_constant_channel_has_no_variance(value, shape):
    x = jnp.full(shape, value, jnp.bfloat16)
    actual, expected = exact(x)
    np.testing.assert_array_equal(actual.var, 0)
    np.testing.assert_array_equal(actual.mean, expected.mean)


def test_binades():
    """The sums of numbers on both sides of a power of two are exact too."""
    for shape in ((2**15, 1), (8, 64, 64, 1)):
        x = np.random.default_rng(0).choice([1 - 2**-8, 1 - 2**-7, 1, 1 + 2**-7], shape)
        actual, expected = exact(jnp.asarray(x, jnp.bfloat16))
        # One rounding or two.
        np.testing.assert_allclose(actual.var, expected.var, rtol=3e-7)
        np.testing.assert_allclose(actual.mean, expected.mean, rtol=6e-8)


def test_the_order_of_the_additions_does_not_matter():
    """A TPU adds into eight accumulators per lane, one element after the other."""
    x = numbers((2**15, 3), 60)
    wide = x.astype(jnp.float32)
    square = wide * wide
    high = exact_sums._rounded(square, 8)
    for term in (wide, high, square - high):
        rows = np.asarray(term).reshape(-1, 8, 3)
        accumulators = np.add.accumulate(rows, 0, np.float32)[-1]
        in_sequence = np.add.accumulate(accumulators, 0, np.float32)[-1]
        np.testing.assert_array_equal(in_sequence, jnp.sum(term, 0))
    # A plain sum of squares is another one in another order.
    rows = np.add.accumulate(np.asarray(square), 0, np.float32)[-1]
    assert np.any(rows != np.asarray(square, np.float64).sum(0))


def test_the_worst_case():
    """One small element among equal ones: the figures of the module's docstring."""
    for shape, bound in (((3136, 1), 3e-4), ((2**15, 1), 1.1e-2)):
        worst = 0
        for value in (1.0, 1.5, 1.9921875):
            for share in (0.0, 0.01, 0.1, 0.3, 0.49, 0.6, 0.8, 1.3, 2.1, 100.3):
                x = np.full(shape, value)
                x[7] = share * value
                actual, expected = exact(jnp.asarray(x, jnp.bfloat16))
                worst = max(worst, abs(float(actual.var[0]) / expected.var[0] - 1))
        assert bound / 30 < worst < bound


@pytest.mark.parametrize("shape", [(64, 2), (8, 200, 200, 2)], ids=str)
def test_overflow(shape):
    for loc, std in ((0.0, 1e36), (3e38, 0.0), (1e38, 1e38), (1e19, 1e18)):
        x = np.clip(loc + std * numbers(shape, 0), -3e38, 3e38)
        settings = reduction.Settings((x.ndim - 1,), "exact")
        actual = _exact(settings, jnp.asarray(x, jnp.bfloat16), None)
        np.testing.assert_array_equal(actual.var, np.inf)
        assert np.all(np.isfinite(actual.mean))


@pytest.mark.parametrize("content", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(content):
    x = numbers((8, 200, 200, 2), 1)
    x_bad = x.at[3, 4, 5, 0].set(content)
    actual = _exact(reduction.Settings((3,), "exact"), x_bad, None)
    assert not np.isfinite(actual.var[0])
    np.testing.assert_allclose(actual.var[1], right(x).var[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype", "of", "expected"),  # Without a mask.
    [
        ((64, 56, 56, 256), jnp.bfloat16, jnp.float32, True),
        ((2**15, 4), jnp.bfloat16, jnp.float32, True),
        ((2**15 + 1, 4), jnp.bfloat16, jnp.float32, False),
        ((2**12, 4), jnp.float16, jnp.float32, True),
        ((2**12 + 1, 4), jnp.float16, jnp.float32, False),
        ((0, 4), jnp.bfloat16, jnp.float32, True),
        ((2**13, 2**12, 4), jnp.bfloat16, jnp.float32, True),
        ((4097, 8191, 4), jnp.bfloat16, jnp.float32, False),  # Float32 rounds it.
        ((64, 4), jnp.float32, jnp.float32, False),
        ((64, 4), jnp.bfloat16, jnp.bfloat16, False),
        ((64, 4), jnp.bfloat16, jnp.float64, False),
    ],
)
def test_where_it_applies(shape, dtype, of, expected):
    x = jax.ShapeDtypeStruct(shape, dtype)
    axes = tuple(range(len(shape) - 1))
    assert exact_sums.applies(axes, jnp.dtype(of), x, masked=False) == expected


@pytest.mark.parametrize(("number", "expected"), [(2**12, True), (2**13, False)])
def test_the_count_of_a_mask_is_exact_up_to_2_to_the_24(number, expected):
    x = jax.ShapeDtypeStruct((number, 2**12, 4), jnp.bfloat16)
    assert exact_sums.applies((0, 1), jnp.dtype("float32"), x, True) == expected


def test_elsewhere_it_makes_two_passes():
    for x in (
        numbers((2**15 + 1, 2), 100),
        numbers((64, 8, 8, 2), 1e4, dtype=jnp.float32),
    ):
        actual, expected = exact(x)
        np.testing.assert_allclose(actual.var, expected.var, rtol=1e-4)


def test_a_sum_is_exact():
    """Tests the lemma itself: every sum of a level equals that of integers."""
    x = numbers((32, 100, 100, 2), 60)
    wide = x.astype(jnp.float32)
    square = wide * wide
    high = exact_sums._rounded(square, 8)
    sums = exact_sums._sums((wide, high, square - high), (0, 1, 2), 8)
    for parts, power in zip((sums[0], sums[1] + sums[2]), (1, 2), strict=True):
        total = sum(np.asarray(part, np.float64) for part in parts)
        values = np.asarray(x, np.float64).reshape(-1, 2) * 2.0**20
        whole = [sum(int(v) ** power for v in column) for column in values.T]
        np.testing.assert_array_equal(total * 2.0 ** (20 * power), whole)


@pytest.mark.parametrize("platform", ["tpu", "cpu", "cuda"])
def test_only_a_tpu_takes_it(platform):
    def lowered(shape, dtype, **options):
        x = jax.ShapeDtypeStruct(shape, dtype)
        stats = jaxbn.init_batch_stats(shape[-1])

        def train(x):
            return jaxbn.batch_norm_train(x, None, None, stats, **options)[0]

        traced = jax.jit(train).trace(x)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    large = 64, 112, 112, 64
    for options in ({}, {"variance": "unconditional"}, {"group_size": 8}):
        text = lowered(large, jnp.bfloat16, **options)
        assert ("reduce_precision" in text) == (platform == "tpu")
        if platform == "tpu":
            assert "optimization_barrier" not in text
    assert "reduce_precision" not in lowered(large, jnp.float32)


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded(explicit):
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("data", "space"), axis_types=(kind, kind))
    x = numbers((8, 60, 60, 4), 100)
    for spec in (
        jax.P("data"),
        jax.P("data", "space"),
        jax.P(None, None, None, "data"),
    ):
        sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        with jax.set_mesh(mesh):
            assert_exact(*exact(sharded))


def test_devices_of_a_mapped_axis():
    x = numbers((8, 16, 30, 30, 4), 100)
    settings = reduction.Settings((3,), "exact", devices=reduction.Devices("d", 8))

    def var(x):
        return collectives.sync_moments(settings, x, None).mine.var

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("d",))
    over = jax.P("d")
    mapped = jax.shard_map(var, mesh=mesh, in_specs=over, out_specs=jax.P())
    actual = jax.jit(mapped)(x.reshape(-1, 30, 30, 4))
    np.testing.assert_allclose(actual, right(x).var, rtol=1e-5)


def test_derivatives_are_those_of_float64():
    """The derivative does not know by which form the moments were computed."""
    x = numbers((64, 3), 20)

    def loss(x, form):
        settings = reduction.Settings((1,), form)
        found = variance.local_moments(settings, x, None)
        return jnp.sum(found.var * jnp.arange(1.0, 4)) + jnp.sum(found.mean)

    wide = np.asarray(x, np.float64)
    expected = 2 * (wide - wide.mean(0)) / 64 * np.arange(1.0, 4) + 1 / 64
    actual = jax.jit(jax.grad(loss), static_argnums=1)(x, "exact")
    # The result has the 8 bits of x, and float32 rounds x - mean at 20 std.
    np.testing.assert_allclose(
        actual.astype(jnp.float32), expected, rtol=8e-3, atol=1e-4
    )
