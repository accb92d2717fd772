"""`ConvBatchNorm` equals its two layers, with their names and their checkpoints."""

import functools

import chex
import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from experiments.compilers.kept import kept
from jaxbn import linen
from jaxbn import nnx as jaxbn_nnx

X = np.random.default_rng(0).normal(1, 2, (4, 7, 6, 3)).astype(np.float32)
CONV = functools.partial(nn.Conv, kernel_size=(1, 1), use_bias=False)
LAYERS = {
    "conv": functools.partial(CONV, 8),
    "strides": functools.partial(CONV, 8, strides=(2, 3)),
    "one stride": functools.partial(CONV, 8, strides=2, padding="VALID"),
    "narrowing": functools.partial(CONV, 2),
    "dense": functools.partial(nn.Dense, 8, use_bias=False),
    "half precision": functools.partial(CONV, 8, dtype=jnp.bfloat16),
}


class Net(nn.Module):
    conv: str
    joined: bool
    train: bool = True

    @nn.compact
    def __call__(self, x, mask=None):
        x = nn.Dense(3)(x)
        conv = LAYERS[self.conv]()
        # In half precision, the slope of ReLU at 0 would depend on rounding.
        activation = "relu" if conv.dtype is None else "gelu"
        norm = linen.BatchNorm(momentum=0.5, activation=activation, dtype=conv.dtype)
        if self.joined:
            y = linen.ConvBatchNorm(conv, norm)(x, not self.train, mask=mask)
        else:
            y = norm(conv(x), not self.train, mask=mask)
        return nn.Dense(2)(y)


class NNXNet(nnx.Module):
    def __init__(self, joined, rngs):
        self.joined = joined
        self.conv = nnx.Conv(3, 8, (1, 1), strides=2, use_bias=False, rngs=rngs)
        self.norm = jaxbn_nnx.BatchNorm(8, activation="relu", rngs=rngs)
        self.linear = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.last = jaxbn_nnx.BatchNorm(16, rngs=rngs)

    def __call__(self, x):
        if self.joined:
            x = jaxbn_nnx.ConvBatchNorm(self.conv, self.norm)(x)
            return jaxbn_nnx.ConvBatchNorm(self.linear, self.last)(x)
        return self.last(self.linear(self.norm(self.conv(x))))


def gradient(net, variables, x, **arguments):
    """Returns the gradient in parameters and input, and the new statistics."""

    def loss(params, x):
        y, new = net.apply(
            {**variables, "params": params}, x, mutable=["batch_stats"], **arguments
        )
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), new

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)


def nets(conv, **fields):
    return [Net(conv, joined, **fields) for joined in (True, False)]


@pytest.mark.parametrize("conv", LAYERS)
def test_equals_the_two_layers(conv):
    joined, apart = nets(conv)
    variables = apart.init(jax.random.key(0), X)
    chex.assert_trees_all_equal(joined.init(jax.random.key(0), X), variables)
    actual, expected = (gradient(net, variables, X) for net in (joined, apart))
    # A few roundings, and a gradient that is 0 has those of its terms.
    tolerance = 2e-2 if conv == "half precision" else 2e-5

    def check(actual, expected):
        difference = np.linalg.norm(actual - expected)
        assert difference <= tolerance * (np.linalg.norm(expected) + 1)

    jax.tree.map(check, actual, expected)


@pytest.mark.parametrize("conv", ["strides", "dense"])
def test_a_mask(conv):
    joined, apart = nets(conv)
    variables = apart.init(jax.random.key(0), X)
    mask = np.arange(4)[:, None, None, None] < 3
    actual, expected = (
        gradient(net, variables, X, mask=mask) for net in (joined, apart)
    )
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


def sizes(apply, params, shape):
    """Returns the number of kept arrays of a shape."""
    return sum(leaf.shape == shape for leaf in kept(apply, params))


@pytest.mark.parametrize(
    ("conv", "images", "features", "saved"),
    [
        ("conv", X, 8, 1),
        ("dense", X, 8, 1),
        ("narrowing", X, 2, 0),
        ("conv", X[:, :2, :1], 8, 0),  # Eight positions, less than 4 K.
    ],
)
def test_less_is_kept(conv, images, features, saved):
    found = []
    for net in nets(conv):
        variables = net.init(jax.random.key(0), images)
        rest = {"batch_stats": variables["batch_stats"]}

        def apply(params, net=net, rest=rest):
            variables = {"params": params, **rest}
            return net.apply(variables, images, mutable=["batch_stats"])[0]

        shape = (*images.shape[:-1], features)
        found.append(sizes(apply, variables["params"], shape))
    joined, apart = found
    assert apart - joined == saved


def test_less_is_kept_in_nnx():
    found = []
    for joined in (True, False):
        graph, params, rest = nnx.split(NNXNet(joined, nnx.Rngs(0)), nnx.Param, ...)

        def apply(params, graph=graph, rest=rest):
            return nnx.merge(graph, params, rest, copy=True)(X)

        found.append(sizes(apply, params, (4, 4, 3, 16)))
    assert found == [0, 1]


def test_inference_and_tools():
    joined, apart = nets("conv", train=False)
    variables = apart.init(jax.random.key(0), X)
    expected = apart.apply(variables, X)
    np.testing.assert_array_equal(joined.apply(variables, X), expected)
    folded, report = jaxbn.fold(joined, variables, X, lambda net, x: net(x))
    assert {row.outcome for row in report.layers} == {"folded"}
    np.testing.assert_allclose(joined.apply(folded, X), expected, rtol=1e-5, atol=1e-5)
    training, _ = nets("conv")
    run = jaxbn.freeze(lambda variables, x: training.apply(variables, x))
    np.testing.assert_array_equal(run(variables, X), expected)


def test_nnx():
    results = []
    for joined in (True, False):
        net = NNXNet(joined, nnx.Rngs(0))

        @nnx.jit
        def step(net, x):
            return nnx.grad(lambda net, x: jnp.sum(jnp.sin(net(x))), argnums=(0, 1))(
                net, x
            )

        gradients = step(net, X)
        results.append((nnx.to_pure_dict(nnx.state(net)), gradients))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-4)


class WeightStandardised(nn.Conv):
    """A convolution of another kernel than its parameter."""


def rounded(*arrays, dtype):
    return arrays


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": (3, 3)}, r"kernel_size=\(3, 3\)"),
        ({"use_bias": True}, "use_bias=True"),
        ({"padding": ((1, 1), (1, 1))}, "padding="),
        ({"strides": 3, "padding": 1}, "padding=1"),  # It keeps the size.
        ({"input_dilation": (1, 2), "padding": ((0, 0), (0, 0))}, "input_dilation="),
        ({"precision": "highest"}, "precision='highest'"),
        ({"promote_dtype": rounded}, "promote_dtype="),
        ({"feature_group_count": 3, "features": 9}, "feature_group_count=3"),
    ],
)
def test_convolutions_that_are_no_product(options, message):
    options = {"features": 8, "kernel_size": (1, 1), "use_bias": False} | options
    norm = linen.BatchNorm(use_running_average=False)
    layer = linen.ConvBatchNorm(nn.Conv(**options), norm)
    with pytest.raises(ValueError, match=f"`conv` must be a Dense .*{message}"):
        layer.init(jax.random.key(0), X)


def test_layers_that_may_compute_something_else():
    norm = linen.BatchNorm(use_running_average=False)
    conv = WeightStandardised(8, (1, 1), use_bias=False)
    with pytest.raises(TypeError, match=r"Conv or Dense of Flax itself, .* got Weight"):
        linen.ConvBatchNorm(conv, norm).init(jax.random.key(0), X)
    flax = nn.BatchNorm(use_running_average=False)
    with pytest.raises(TypeError, match="`norm` must be a `BatchNorm` of jaxbn"):
        linen.ConvBatchNorm(CONV(8), flax).init(jax.random.key(0), X)
    norm = linen.BatchNorm(use_running_average=False, in_place=True)
    with pytest.raises(ValueError, match="must have `in_place=False`"):
        linen.ConvBatchNorm(CONV(8), norm).init(jax.random.key(0), X)
    conv = nnx.LoRALinear(3, 8, lora_rank=2, use_bias=False, rngs=nnx.Rngs(0))
    layer = jaxbn_nnx.ConvBatchNorm(conv, jaxbn_nnx.BatchNorm(8, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="Conv or Linear of Flax itself"):
        layer(X)


def test_a_folded_nnx_model():
    model = NNXNet(True, nnx.Rngs(0))
    model.eval()
    expected = model(X)
    folded, report = jaxbn.fold(model, None, X, lambda model, x: model(x))
    assert {row.outcome for row in report.layers} == {"folded"}
    np.testing.assert_allclose(folded(X), expected, rtol=1e-5, atol=1e-5)


def test_channels_in_front():
    """Channels of `norm` that are not the features of `conv`."""
    norm = linen.BatchNorm(use_running_average=False, axis=1)
    layer = linen.ConvBatchNorm(CONV(8), norm)
    y, variables = layer.init_with_output(jax.random.key(0), X)
    expected = norm.apply(
        {name: tree["norm"] for name, tree in variables.items()},
        CONV(8).apply({"params": variables["params"]["conv"]}, X),
        mutable=["batch_stats"],
    )[0]
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("conv", ["conv", "dense"])
def test_symbolic_sizes(conv):
    net = nets(conv)[0]
    variables = net.init(jax.random.key(0), X)
    step = jax.jit(lambda variables, x: gradient(net, variables, x))
    size, height = jax.export.symbolic_shape("b, h", constraints=["h >= 4"])
    x = jax.ShapeDtypeStruct((size, height, 6, 3), jnp.float32)
    exported = jax.export.export(step)(variables, x)
    chex.assert_trees_all_close(
        exported.call(variables, X), step(variables, X), rtol=1e-4, atol=1e-4
    )
