import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import inception, models
from jaxbn import testing


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def params(model, pixels=224):
    """Returns the shapes of the parameters by their paths."""
    images = jnp.zeros((2, pixels, pixels, 3))
    made = jax.eval_shape(
        lambda key: model.init(key, images, train=False), jax.random.key(0)
    )
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(made["params"]):
        found[tuple(key.key for key in path)] = leaf
    return found


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


class TestTheNetworkOfFigure5:
    @pytest.mark.exhaustive
    def test_parameters(self):
        # This follows from the branches' widths; the paper's text says 13.6 million.
        kernels = [s for p, s in params(inception.BNInception()).items()
                   if p[0].startswith("ConvNorm") and p[-1] == "kernel"]  # fmt: skip
        assert round(count(kernels) / 1e6, 2) == 10.23
        classifier = {p: s for p, s in params(inception.BNInception()).items()
                      if p[0] == "Dense_0"}  # fmt: skip
        assert count(classifier) == 1025 * 1000
        assert round((count(kernels) + count(classifier)) / 1e6, 2) == 11.26

    def test_no_bias_before_a_normalisation(self):
        for path in params(inception.BNInception()):
            if path[-1] == "bias":
                assert path[0] == "Dense_0" or path[-2].startswith("BatchNorm")

    def test_separable_stem_with_depth_multiplier_8(self):
        found = params(inception.BNInception())
        depthwise, pointwise = (
            found["ConvNorm_0", f"Conv_{i}", "kernel"].shape for i in range(2)
        )
        assert depthwise == (7, 7, 1, 8 * 3)
        assert pointwise == (1, 1, 8 * 3, 64)

    def test_resolutions(self):
        layers = models.norm_layers(inception.BNInception())
        assert len(layers) == 3 + 8 * 7 + 2 * 5
        stem, modules = layers[:3], iter(layers[3:])
        assert [layer.positions for layer in stem] == [112**2, 56**2, 56**2]
        resolution = 28
        for name, branches in inception.FIGURE5.items():
            of_module = [next(modules) for _ in range(7 if branches.one else 5)]
            sizes = {layer.positions for layer in of_module}
            if name in ("3c", "4e"):  # Their 3x3 convolutions have a stride of 2.
                assert sizes == {resolution**2, (resolution // 2) ** 2}
                resolution //= 2
            else:
                assert sizes == {resolution**2}, name
        assert resolution == 7

    @pytest.mark.exhaustive
    def test_outputs_of_the_modules(self):
        # The table of the appendix, but for 4c, 4d and 4e, where its branches add up
        # to 608, 608 and 1056.
        outputs = (256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024)
        x, shapes = jnp.zeros((2, 8, 8, 192)), []
        for name in inception.FIGURE5:
            module = Module(inception.FIGURE5[name])
            x = jax.eval_shape(lambda x, m=module: m.init_with_output(
                jax.random.key(0), x)[0], x)  # fmt: skip
            shapes.append(x.shape)
        assert tuple(shape[-1] for shape in shapes) == outputs
        assert [shape[1] for shape in shapes] == [8] * 2 + [4] * 5 + [2] * 3

    @pytest.mark.exhaustive
    def test_output_and_statistics_of_small_images(self):
        model, x = inception.BNInception(classes=3, width=1 / 8), normal(2, 64, 64, 3)
        shapes = jax.eval_shape(
            lambda: model.init(jax.random.key(0), x, train=False)["params"]
        )
        params = jax.tree.map(lambda leaf: 0.1 * normal(*leaf.shape), shapes)
        y, variables = jax.jit(
            lambda x: model.apply(
                {"params": params}, x, train=True, mutable=["batch_stats"]
            )
        )(x)
        assert y.shape == (2, 3)
        testing.assert_valid_batch_stats(variables["batch_stats"])


class Module(nn.Module):
    """One module alone, in training."""

    branches: inception.Branches

    @nn.compact
    def __call__(self, x):
        return inception._module(models.ConvNorm, self.branches, x, True)


def pooled(x, stride, average):
    """Windows of 3x3, by hand; what lies outside counts as 0 for an average."""
    padded = np.pad(
        np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)),
        constant_values=0 if average else -np.inf,
    )  # fmt: skip
    height, width = x.shape[1:3]
    # Stride 2 of an even size begins at the first pixel: only the end is padded.
    start = 0 if stride == 1 else 1
    windows = [padded[:, i + start : i + start + height : stride,
                      j + start : j + start + width : stride]
               for i in range(3) for j in range(3)]  # fmt: skip
    return np.mean(windows, 0) if average else np.max(windows, 0)


@pytest.mark.parametrize("name", inception.FIGURE5)
def test_pool_of_each_module(name):
    branches = inception.FIGURE5[name].scaled(1 / 64)
    average = name not in ("3c", "4e", "5b")
    inputs, x = [], normal(2, 6, 6, 3)

    def conv(features, kernel=1, stride=1):
        def zeros(x, train):
            inputs.append(x)
            return jnp.zeros((*x[:, ::stride, ::stride].shape[:-1], features))

        return zeros

    y = inception._module(conv, branches, x, True)
    # The last convolution projects the pool; else the pool is the end of the output.
    actual = inputs[-1] if branches.projection else y[..., -3:]
    stride = 1 if branches.projection else 2
    np.testing.assert_allclose(actual, pooled(x, stride, average), rtol=1e-5, atol=1e-6)


class TestPlain:
    def test_biases_and_no_normalisation(self):
        with_bn = params(inception.BNInception())
        plain = params(inception.plain(inception.BNInception))
        assert not any("BatchNorm" in name for path in plain for name in path)
        kernels = {p: s.shape for p, s in plain.items() if p[-1] == "kernel"}
        assert kernels == {p: s.shape for p, s in with_bn.items() if p[-1] == "kernel"}
        biases = {p: s.shape for p, s in plain.items() if p[-1] == "bias"}
        depthwise = ("ConvNorm_0", "Conv_0")
        assert {p[:-1] for p in biases} == {p[:-1] for p in kernels} - {depthwise}

    def test_dropout_in_training_only(self):
        model = inception.plain(inception.SmallInception, classes=3, modules=())
        assert model.dropout == 0.4
        x = normal(2, 6, 6, 1)
        variables = model.init(jax.random.key(0), x, train=False)
        keys = [{"dropout": jax.random.key(seed)} for seed in range(2)]
        first, second = (model.apply(variables, x, True, rngs=key) for key in keys)
        assert jnp.any(first != second)
        chex.assert_trees_all_equal(
            *(model.apply(variables, x, False, rngs=key) for key in keys)
        )

    def test_local_response_norm_against_loops(self):
        x = np.float64(normal(2, 3, 7))
        expected = np.zeros_like(x)
        for channel in range(7):
            around = range(max(0, channel - 2), min(7, channel + 3))
            sums = sum(x[..., i] ** 2 for i in around)
            expected[..., channel] = x[..., channel] / (2 + 0.3 * sums) ** 0.75
        actual = inception.local_response_norm(jnp.asarray(x), bias=2, alpha=0.3)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


class TestSmall:
    @pytest.mark.exhaustive
    @pytest.mark.parametrize(
        "pixels",
        [28, *(pytest.param(p, marks=pytest.mark.exhaustive) for p in (8, 32))],
    )
    def test_all_modules_at_an_eighth_of_the_resolution(self, pixels):
        layers = models.norm_layers(inception.SmallInception(), pixels)
        assert len(layers) == 1 + 8 * 7 + 2 * 5
        assert layers[-1].positions == ((pixels + 3) // 4) ** 2

    def test_width(self):
        branches = inception.FIGURE5["3c"].scaled(1 / 16)
        assert branches == (0, 8, 10, 4, 6, 0, False)
        assert inception.FIGURE5["3a"].scaled(1e-3)[:6] == (1,) * 6
        small = functools.partial(inception.SmallInception, modules=("3a",))
        full, half = (params(small(width=width), 28) for width in (1, 1 / 2))
        for path, leaf in full.items():
            if path[-1] == "scale":
                assert half[path].shape[0] == leaf.shape[0] // 2

    def test_stride_of_the_stem(self):
        model = inception.SmallInception(modules=("3a",), stem_stride=2)
        assert {layer.positions for layer in models.norm_layers(model, 28)} == {14**2}
