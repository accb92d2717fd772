"""The op on the factors of `x`: the same results as on `x`, which is not kept."""

from unittest import mock

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from experiments.compilers import hlo
from experiments.compilers.kept import kept
from jaxbn import sync
from jaxbn._core import product
from tests.op import make_batch, plain, train
from tests.styles import DEVICES

P = jax.P
# Activation, and whether there is a residual.
OUTPUTS = [(None, False), ("relu", False), ("relu", True), ("gelu", True)]


def joined(inputs, kernel, scale, bias, **options):
    factors = inputs, kernel
    return train(inputs @ kernel, scale, bias, factors=factors, **options)


def apart(inputs, kernel, scale, bias, **options):
    return train(inputs @ kernel, scale, bias, **options)


def textbook(inputs, kernel, scale, bias):
    return plain(inputs @ kernel, scale, bias)


def make_factors(shape=(6, 4, 3), features=5, seed=0):
    """Returns inputs, kernel, scale and bias, and a gradient of the output."""
    inputs, *_ = make_batch(shape, seed=seed)
    _, scale, bias, dy = make_batch((*shape[:-1], features), seed=seed)
    kernel = np.random.default_rng(seed).standard_normal((shape[-1], features))
    return (inputs, kernel.astype(np.float32), scale, bias), dy


def gradients(function, args, dy, **options):
    def loss(*args):
        return jnp.sum(function(*args, **options) * dy)

    return jax.jit(jax.grad(loss, range(len(args))))(*args)


def error(actual, expected):
    """Returns the norm of the difference, over that of what is expected."""
    actual, expected = np.float64(actual), np.float64(expected)
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


class OfFloat64Test(chex.TestCase):
    """Compares derivatives with autodiff of the textbook formula, in float64."""

    def assert_same(self, transform):
        args, dy = make_factors((6, 2), 3)
        with jax.enable_x64(True):
            args, dy = jax.tree.map(lambda part: jnp.asarray(part, float), (args, dy))

            def of(function):
                return transform(lambda *args: jnp.sum(jnp.sin(function(*args)) * dy))

            chex.assert_trees_all_close(
                jax.jit(of(joined))(*args),
                jax.jit(of(textbook))(*args),
                rtol=1e-8,  # Second derivatives are differences of larger terms.
                atol=1e-9,
            )

    def test_grad(self):
        self.assert_same(lambda f: jax.grad(f, range(4)))

    def test_jvp(self):
        def transform(f):
            return lambda *args: jax.jvp(f, args, tuple(a[::-1] for a in args))

        self.assert_same(transform)

    def test_hessian(self):
        self.assert_same(lambda f: jax.hessian(f, range(4)))

    @pytest.mark.exhaustive
    def test_reverse_over_reverse(self):
        def transform(f):
            def norm(*args):
                return sum(jnp.sum(g**2) for g in jax.grad(f, range(4))(*args))

            return jax.grad(norm, range(4))

        self.assert_same(transform)

    @pytest.mark.exhaustive
    def test_vmap_of_grad(self):
        def transform(f):
            mapped = jax.vmap(jax.grad(f, range(4)), (0, None, None, None))
            return lambda x, *rest: mapped(jnp.stack([x, x[::-1] * 3]), *rest)

        self.assert_same(transform)


@hypothesis.settings(deadline=None, max_examples=10)
@hypothesis.given(
    shape=st.lists(st.integers(2, 5), min_size=2, max_size=4),
    features=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_any_shape(shape, features, seed):
    args, dy = make_factors(tuple(shape), features, seed)
    with jax.enable_x64(True):
        args, dy = jax.tree.map(lambda part: jnp.asarray(part, float), (args, dy))
        chex.assert_trees_all_close(
            gradients(joined, args, dy),
            gradients(textbook, args, dy),
            rtol=1e-6,  # A variance near 0 magnifies rounding.
            atol=1e-6,
        )


@pytest.mark.parametrize(("activation", "has_residual"), OUTPUTS)
@pytest.mark.parametrize("masked", [False, True])
def test_every_output(activation, has_residual, masked):
    args, dy = make_factors()
    mask = np.arange(6)[:, None, None] % 3 > 0
    options = {
        "activation": activation,
        "residual": dy[::-1] if has_residual else None,
        "mask": mask if masked else None,
    }
    np.testing.assert_array_equal(joined(*args, **options), apart(*args, **options))
    for actual, expected in zip(
        gradients(joined, args, dy, **options),
        gradients(apart, args, dy, **options),
        strict=True,
    ):
        assert error(actual, expected) < 2e-6  # A few roundings of float32.


@pytest.mark.parametrize("content", [np.nan, np.inf, 3e38, -1e12])
def test_content_outside_the_mask_reaches_no_gradient(content):
    args, dy = make_factors()
    mask = np.arange(6)[:, None, None] < 4
    dy = dy * mask
    expected = gradients(joined, (args[0][:4], *args[1:]), dy[:4])
    inputs = np.where(mask, args[0], np.float32(content))
    actual = gradients(joined, (inputs, *args[1:]), dy, mask=mask)
    np.testing.assert_array_equal(actual[0][4:], 0)
    for ours, theirs in zip((actual[0][:4], *actual[1:]), expected, strict=True):
        assert error(ours, theirs) < 2e-6
    # In second derivatives too.
    second = jax.jit(
        jax.grad(lambda x: jnp.sum(gradients(joined, (x, *args[1:]), dy, mask=mask)[1]))
    )(inputs)
    np.testing.assert_array_equal(second[4:], 0)
    assert np.all(np.isfinite(second))


def test_a_loss_that_reads_content_outside_the_mask():
    """Elements that are not finite are the bias, whose gradient they reach."""
    args, dy = make_factors()
    mask = np.arange(6)[:, None, None] < 4
    inputs = np.where(np.arange(6)[:, None, None] == 5, np.nan, args[0])
    args = inputs, *args[1:]
    actual, expected = (gradients(f, args, dy, mask=mask) for f in (joined, apart))
    for ours, theirs in zip(actual[2:], expected[2:], strict=True):
        assert error(ours, theirs) < 2e-6
    # The kernel of a layer of its own receives NaN here.
    assert np.all(np.isfinite(actual[1]))


def test_a_mask_of_elements_keeps_x():
    args, dy = make_factors()
    mask = np.random.default_rng(0).random(dy.shape) < 0.7
    chex.assert_trees_all_close(
        gradients(joined, args, dy, mask=mask), gradients(apart, args, dy, mask=mask)
    )


@pytest.mark.parametrize("ratio", [1, 100])
def test_a_large_mean(ratio):
    """The bound of the module's docstring in float32."""
    (inputs, kernel, scale, bias), dy = make_factors((4096, 16), 64)
    args = inputs + ratio / 2, np.abs(kernel), scale, bias
    with jax.enable_x64(True):
        wide = tuple(np.float64(a) for a in args)
        expected = gradients(textbook, wide, np.float64(dy))
    x = wide[0] @ wide[1]
    assert np.median(x.mean(0) / x.std(0)) > ratio / 2
    for actual, wanted in zip(gradients(joined, args, dy), expected, strict=True):
        assert error(actual, wanted) < 5e-6 * ratio


def test_half_precision_with_equal_dy():
    """The bound of the module's docstring."""
    args, dy = make_factors((4096, 16), 64)
    narrow = [jnp.asarray(a, jnp.bfloat16) for a in args[:2]]
    wide = [jnp.asarray(a, jnp.float32) for a in narrow]
    dy = jnp.asarray(dy + 100, jnp.bfloat16)
    exact = gradients(apart, (*wide, *args[2:]), dy.astype(jnp.float32))[2]
    ours = gradients(joined, (*narrow, *args[2:]), dy)[2]
    size = np.linalg.norm(np.float64(dy), axis=0)
    assert np.max(np.abs(ours - exact) / size) < 2**-7


def test_the_products_of_a_tpu():
    """On a TPU they are convolutions."""
    rng = np.random.default_rng(0)
    for shape in ((4, 5, 3), (4, 5, 6, 3), (2, 3, 4, 5, 3)):
        left, kernel = rng.normal(size=shape), rng.normal(size=(3, 7))
        right = rng.normal(size=(*shape[:-1], 7))
        for function, factors in (
            (product.multiplied, (left, kernel)),
            (product.inner, (left, right)),
        ):
            factors = [jnp.asarray(part, jnp.float32) for part in factors]
            run = jax.jit(lambda *a, function=function: function(*a, None))
            on_tpu = jax.export.export(run, platforms=["tpu"])(*factors)
            assert "convolution" in on_tpu.mlir_module()
            with mock.patch.object(jax.lax, "platform_dependent", _for_tpu):
                actual = function(*factors, None)
            np.testing.assert_allclose(actual, run(*factors), rtol=1e-5, atol=1e-5)


def _for_tpu(*args, tpu, default):
    return tpu(*args)


def test_x_is_not_computed_again():
    """The sign of the output is that of the input of ReLU."""
    args, dy = make_factors((256, 16), 64)

    def flops(activation):
        """Returns the work of the backward pass alone."""
        _, vjp = jax.vjp(lambda *args: joined(*args, activation=activation), *args)
        compiled = jax.jit(lambda vjp, dy: vjp(dy)).lower(vjp, dy).compile()
        return compiled.cost_analysis()["flops"]

    product_of_x = 2 * 256 * 16 * 64
    assert flops("relu") - flops(None) < product_of_x / 2
    assert flops("gelu") - flops(None) > product_of_x


def test_half_precision_is_as_exact_as_two_layers():
    args, dy = make_factors((512, 16), 64)
    narrow = [jnp.asarray(a, jnp.bfloat16) for a in args[:2]]
    wide = [jnp.asarray(a, jnp.float32) for a in narrow]
    dy = jnp.asarray(dy, jnp.bfloat16)
    exact = gradients(apart, (*wide, *args[2:]), dy.astype(jnp.float32))
    ours = gradients(joined, (*narrow, *args[2:]), dy)
    theirs = gradients(apart, (*narrow, *args[2:]), dy)
    for index in range(4):
        assert ours[index].dtype == theirs[index].dtype
        limit = 1.2 * error(theirs[index], exact[index]) + 1e-6
        assert error(ours[index], exact[index]) < limit


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_kept(dtype):
    args, _ = make_factors((64, 4), 32)
    args = (*(jnp.asarray(a, dtype) for a in args[:2]), *args[2:])
    kernel = jnp.ones((32, 2), dtype)  # Of the next layer, which keeps the output.

    def large(function):
        def block(kernel, *args):
            return function(*args, activation="relu") @ kernel

        arrays = kept(block, kernel, *args)
        return sorted(leaf.shape for leaf in arrays if leaf.shape[:1] == (64,))

    assert large(joined) == [(64, 4), (64, 32)]
    assert large(apart) == [(64, 4), (64, 32), (64, 32)]


@pytest.mark.parametrize("style", ["jit Auto", "jit Explicit", "shard_map", "vmap"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_eight_devices_equal_one(style, masked, dtype):
    args, dy = make_factors((16, 3, 4), 6)
    args = *(jnp.asarray(part, dtype) for part in args[:2]), *args[2:]
    # Uneven shares: the last devices have no valid example.
    mask = np.arange(16)[:, None, None] < 11 if masked else np.ones((16, 1, 1), bool)
    expected = gradients(joined, args, dy * mask, mask=mask)

    def loss(inputs, params, dy, mask):
        axis_name = None if style.startswith("jit") else "d"
        y = joined(inputs, *params, mask=mask, axis_name=axis_name)
        return jnp.sum(y * dy * mask)

    gradient = jax.grad(loss, (0, 1))
    data = args[0], args[1:], dy, mask
    if style == "vmap":
        split = [
            part.reshape(DEVICES, 2, *part.shape[1:]) for part in (args[0], dy, mask)
        ]
        inputs, params = jax.vmap(gradient, (0, None, 0, 0), axis_name="d")(
            split[0], args[1:], *split[1:]
        )
        inputs = inputs.reshape(args[0].shape)
        params = jax.tree.map(lambda part: part.sum(0), params)
    elif style == "shard_map":
        specs = P("d"), P(), P("d"), P("d")
        mesh = jax.make_mesh((DEVICES,), ("d",), (jax.sharding.AxisType.Auto,))
        mapped = jax.shard_map(
            gradient, mesh=mesh, in_specs=specs, out_specs=(P("d"), P())
        )
        inputs, params = jax.jit(mapped)(*data)
    else:
        kind = getattr(jax.sharding.AxisType, style.split()[1])
        mesh = jax.make_mesh((DEVICES,), ("d",), (kind,))
        specs = P("d"), P(), P("d"), P("d")
        placed = [
            jax.device_put(part, jax.NamedSharding(mesh, spec))
            for part, spec in zip(data, specs, strict=True)
        ]
        with jax.set_mesh(mesh):
            inputs, params = jax.jit(gradient)(*placed)
    # A few roundings; with half precision, of the sums of each device.
    limit = 2e-6 if dtype == jnp.float32 else 1e-2
    for actual, wanted in zip((inputs, *params), expected, strict=True):
        assert error(actual, wanted) < limit


@pytest.mark.parametrize("style", ["jit", "shard_map"])
def test_no_more_collectives_than_two_layers(style):
    args, dy = make_factors((16, 3, 4), 6)
    mesh = jax.make_mesh((DEVICES,), ("d",), (jax.sharding.AxisType.Auto,))
    specs = P("d"), P(), P("d")

    def count(function):
        def loss(inputs, params, dy):
            axis_name = "d" if style == "shard_map" else None
            return jnp.sum(function(inputs, *params, axis_name=axis_name) * dy)

        step = jax.grad(loss, (0, 1))
        if style == "shard_map":
            step = jax.shard_map(
                step, mesh=mesh, in_specs=specs, out_specs=(P("d"), P())
            )
        shardings = tuple(jax.NamedSharding(mesh, spec) for spec in specs)
        lowered = jax.jit(step, in_shardings=shardings).lower(args[0], args[1:], dy)
        return len(hlo.collectives(lowered.compile().as_text()))

    assert 0 < count(joined) <= count(apart)


def test_parts_of_the_batch_keep_x():
    args, dy = make_factors((8, 3), 5)
    chex.assert_trees_all_close(
        gradients(joined, args, dy, group_size=4),
        gradients(apart, args, dy, group_size=4),
        rtol=1e-6,
        atol=1e-6,
    )


class OfOtherInput:
    """A policy that normalises another input than it is given."""

    def init(self, shape, dtype):
        return {}

    def normalize(self, call, state):
        return sync.Normalized(*call._replace(x=jnp.sin(call.x)).by_all())


def test_a_policy_may_replace_x():
    args, _ = make_factors((8, 3), 5)
    y = joined(*args, group_size=4, sync=OfOtherInput())
    expected = train(jnp.sin(args[0] @ args[1]), *args[2:])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_constant_channel_has_no_gradient():
    args, dy = make_factors()
    kernel = args[1].copy()
    kernel[:, 0] = 0
    args = args[0], kernel, *args[2:]
    actual, expected = (gradients(f, args, dy) for f in (joined, apart))
    for ours, theirs in zip(actual, expected, strict=True):
        assert np.all(np.isfinite(ours))
        assert error(ours, theirs) < 2e-6


def test_factors_that_do_not_fit():
    (inputs, kernel, scale, bias), _ = make_factors()
    x, stats = inputs @ kernel, jaxbn.init_batch_stats(5)
    run = jaxbn.batch_norm_train
    for factors in ((inputs, kernel.T), (inputs[:1], kernel), (inputs[0], kernel)):
        with pytest.raises(ValueError, match="`factors` must be"):
            run(x, scale, bias, stats, factors=factors)
    with pytest.raises(ValueError, match="`factors` must be"):
        run(x, None, None, jaxbn.init_batch_stats(4), axis=1, factors=(inputs, kernel))
    with pytest.raises(ValueError, match="two ways not to keep"):
        run(x, scale, bias, stats, in_place=True, factors=(inputs, kernel))
