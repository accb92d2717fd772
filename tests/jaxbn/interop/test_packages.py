"""Whole models against the packages themselves, where they are installed."""

import collections
import importlib.util

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn.linen
import jaxbn.nnx
from jaxbn import interop

NAMES = {"conv": "0", "bn": "1", "conv2": "3", "bn2": "4", "head": "8"}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 9, 8, 3)).astype(np.float32)
MOMENTUM = 0.2  # PyTorch's, of the second normalisation.

# With `-m exhaustive`: PyTorch is large, and not installed by README's command.
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="compares with PyTorch; `pip install torch` runs it",
)


def torch_model():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(6),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 5, (3, 2), stride=2),
        torch.nn.BatchNorm2d(5, eps=1e-3, momentum=MOMENTUM),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(5, 2),
    )
    with torch.no_grad():  # Statistics and weights that are not those of a new layer.
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        model(torch.randn(8, 3, 9, 8))
    return model


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        options = {"use_running_average": not train}
        x = nn.Conv(6, (3, 3), padding=1, use_bias=False, name="conv")(x)
        x = jaxbn.linen.BatchNorm(momentum=0.9, name="bn", **options)(x)
        x = nn.Conv(5, (3, 2), 2, padding="VALID", name="conv2")(nn.relu(x))
        x = jaxbn.linen.BatchNorm(
            momentum=interop.momentum_from_torch(MOMENTUM),
            epsilon=1e-3,
            name="bn2",
            **options,
        )(x)
        return nn.Dense(2, name="head")(nn.relu(x).mean((1, 2)))


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 6, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn = jaxbn.nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(6, 5, (3, 2), 2, padding="VALID", rngs=rngs)
        self.bn2 = jaxbn.nnx.BatchNorm(
            5,
            momentum=interop.momentum_from_torch(MOMENTUM),
            epsilon=1e-3,
            rngs=rngs,
        )
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        x = self.conv2(nnx.relu(self.bn(self.conv(x))))
        return self.head(nnx.relu(self.bn2(x)).mean((1, 2)))


def torch_steps(model, number=3, rate=0.05):
    """Output in evaluation, losses and the weights after steps of plain SGD."""
    import torch

    x = torch.tensor(np.moveaxis(X, -1, 1).copy())
    model.eval()
    evaluated = model(x).detach().numpy()
    model.train()
    outputs = []
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for _ in range(number):
        y = model(x)
        outputs.append(y.detach().numpy())
        optimizer.zero_grad()
        torch.sum(torch.sin(y)).backward()
        optimizer.step()
    return evaluated, outputs, model.state_dict()


def linen_steps(weights, number=3, rate=0.05):
    template = Net().init(jax.random.key(0), X, train=False)
    variables = interop.from_torch(weights, template, NAMES)
    evaluated = Net().apply(variables, X, train=False)
    outputs = []

    @jax.jit
    def step(variables):
        def loss(params):
            given = variables | {"params": params}
            y, updates = Net().apply(given, X, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, updates)

        grads, (y, updates) = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - rate * g, variables["params"], grads)
        return y, {"params": params, **updates}

    for _ in range(number):
        y, variables = step(variables)
        outputs.append(y)
    return evaluated, outputs, variables


def nnx_steps(weights, number=3, rate=0.05):
    model = Model()
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    made = interop.from_torch(weights, nnx.to_pure_dict(state), NAMES)
    nnx.replace_by_pure_dict(state, made)
    nnx.update(model, state)
    model.eval()
    evaluated = model(X)
    model.train()
    outputs = []

    def loss(model):
        y = model(X)
        return jnp.sum(jnp.sin(y)), y

    for _ in range(number):
        grads, y = nnx.grad(loss, has_aux=True)(model)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda p, g: p - rate * g, params, grads))
        outputs.append(y)
    return (
        evaluated,
        outputs,
        nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat))),
    )


@pytest.mark.exhaustive
@needs_torch
@pytest.mark.parametrize("steps", [linen_steps, nnx_steps])
def test_a_network_of_pytorch_goes_on_training(steps):
    model = torch_model()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    evaluated, outputs, after = torch_steps(model)
    our_evaluated, our_outputs, variables = steps(weights)
    np.testing.assert_allclose(our_evaluated, evaluated, atol=1e-5)
    np.testing.assert_allclose(np.stack(our_outputs), np.stack(outputs), atol=1e-5)
    back = interop.to_torch(variables, NAMES)
    assert set(back) == set(after)
    for name, value in after.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(
                back[name], value.numpy(), atol=1e-5, err_msg=name
            )


def torch_gradients(model, x):
    """Returns the gradients of all weights, and that of the input, channels last."""
    import torch

    x = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    torch.sum(torch.sin(model(x))).backward()
    weights = {name: each.grad.numpy() for name, each in model.named_parameters()}
    return weights, np.moveaxis(x.grad.numpy(), 1, -1)


def linen_gradients(weights, x, train):
    template = Net().init(jax.random.key(0), X, train=False)
    variables = interop.from_torch(weights, template, NAMES)

    @jax.jit
    def loss(params, x):
        given = variables | {"params": params}
        y, _ = Net().apply(given, x, train=train, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y))

    params, dx = jax.grad(loss, (0, 1))(variables["params"], x)
    return {"params": params}, dx


def nnx_gradients(weights, x, train):
    model = Model()
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    made = interop.from_torch(weights, nnx.to_pure_dict(state), NAMES)
    nnx.replace_by_pure_dict(state, made)
    nnx.update(model, state)
    model.train() if train else model.eval()
    grads, dx = nnx.grad(lambda m, x: jnp.sum(jnp.sin(m(x))), argnums=(0, 1))(model, x)
    return nnx.to_pure_dict(grads), dx


@pytest.mark.exhaustive
@needs_torch
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("gradients", [linen_gradients, nnx_gradients])
def test_gradients_are_those_of_pytorch(gradients, train):
    """A bias before a normalisation has a gradient of 0, up to the others' rounding."""
    model = torch_model().train(train)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    expected, expected_dx = torch_gradients(model, X)
    grads, dx = gradients(weights, X, train)
    np.testing.assert_allclose(dx, expected_dx, atol=1e-5 * np.abs(expected_dx).max())
    actual = interop.to_torch(grads, NAMES)
    assert set(actual) == set(expected)
    largest = max(np.abs(each).max() for each in expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(
            actual[name], value, rtol=1e-5, atol=1e-6 * largest, err_msg=name
        )


class Norms(nn.Module):
    """Every normalisation of Flax that PyTorch or Haiku has, and an embedding."""

    offset_only: bool  # What the bare normalisation has: its bias, or its scale.

    @nn.compact
    def __call__(self, words):
        x = nn.Embed(7, 6, name="table")(words)
        x = nn.LayerNorm(epsilon=1e-5, name="layer")(x)
        x = nn.Dense(6, use_bias=False, name="dense")(x)
        has = {"use_bias": self.offset_only, "use_scale": not self.offset_only}
        x = nn.LayerNorm(epsilon=1e-5, name="bare", **has)(x)
        x = nn.GroupNorm(2, epsilon=1e-5, name="group")(x)
        return nn.RMSNorm(epsilon=1e-5, name="rms")(x)


@pytest.mark.exhaustive
@needs_torch
def test_normalisations_of_pytorch():
    import torch

    torch.manual_seed(0)
    modules = {
        "table": torch.nn.Embedding(7, 6),
        "layer": torch.nn.LayerNorm(6),
        "dense": torch.nn.Linear(6, 6, bias=False),
        "bare": torch.nn.LayerNorm(6, bias=False),
        "group": torch.nn.GroupNorm(2, 6),
        "rms": torch.nn.RMSNorm(6, eps=1e-5),
    }
    model = torch.nn.Sequential(collections.OrderedDict(modules))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    words = np.array([0, 3, 6, 3])
    expected = model(torch.tensor(words)).detach().numpy()
    net, names = Norms(offset_only=False), {name: name for name in modules}
    template = net.init(jax.random.key(0), words)
    variables = interop.from_torch(model.state_dict(), template, names)
    # One word is one place: its groups are those of a [N, C] array in PyTorch as well.
    y = jax.vmap(lambda word: net.apply(variables, word[None])[0])(words)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    back = interop.to_torch(variables, names)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(back[name], value.numpy())


@pytest.mark.exhaustive
@needs_torch
def test_a_file_of_pytorch(tmp_path):
    """Written by safetensors.torch, in bfloat16; and one of ours read by it."""
    import torch
    from safetensors.torch import load_file, save_file

    model = torch_model().bfloat16()
    save_file(model.state_dict(), tmp_path / "theirs.safetensors")
    template = Net().init(jax.random.key(0), X, train=False)
    variables = interop.from_torch(tmp_path / "theirs.safetensors", template, NAMES)
    expected = interop.from_torch(model.state_dict(), template, NAMES)
    chex.assert_trees_all_equal(variables, expected)
    ours = tmp_path / "ours.safetensors"
    interop.save_safetensors(ours, interop.to_torch(variables, NAMES))
    other = torch_model()
    other.load_state_dict(load_file(ours))
    for name, value in other.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, model.state_dict()[name].float()), name


@pytest.mark.exhaustive
def test_normalisations_of_haiku():
    import haiku as hk

    def forward(words):
        random = hk.initializers.RandomNormal(mean=1.0)
        both = {"scale_init": random, "offset_init": random}
        x = hk.Embed(7, 6, name="table")(words)
        x = hk.LayerNorm(-1, True, True, name="layer", **both)(x)
        x = hk.Linear(6, with_bias=False, name="dense")(x)
        x = hk.LayerNorm(-1, False, True, offset_init=random, name="bare")(x)
        x = hk.GroupNorm(2, name="group", **both)(x)
        return hk.RMSNorm(-1, name="rms", scale_init=random)(x)

    model = hk.without_apply_rng(hk.transform(forward))
    words = np.array([0, 3, 6, 3])
    params = model.init(jax.random.key(0), words)
    net, names = Norms(offset_only=True), {name: name for name in params}
    template = net.init(jax.random.key(1), words)
    variables = interop.from_haiku(params, {}, template, names)
    expected = jax.vmap(lambda word: model.apply(params, word[None])[0])(words)
    y = jax.vmap(lambda word: net.apply(variables, word[None])[0])(words)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.exhaustive
@needs_torch
def test_and_back_into_pytorch():
    import torch

    variables = Net().init(jax.random.key(1), X, train=False)
    weights = interop.to_torch(variables, NAMES)
    model = torch_model()
    model.load_state_dict({name: torch.tensor(v) for name, v in weights.items()})
    model.eval()
    y = model(torch.tensor(np.moveaxis(X, -1, 1).copy())).detach().numpy()
    expected = Net().apply(variables, X, train=False)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.exhaustive
def test_haiku():
    import haiku as hk

    def forward(x, training):
        x = hk.Conv2D(6, 3, name="conv")(x)
        x = hk.BatchNorm(True, True, 0.9, name="bn")(x, training)
        return hk.Linear(2, name="head")(jax.nn.relu(x).mean((1, 2)))

    model = hk.transform_with_state(forward)
    params, state = model.init(jax.random.key(0), X, True)
    _, state = model.apply(params, state, None, 2 * X + 1, True)

    class Small(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(6, (3, 3), name="conv")(x)
            x = jaxbn.linen.BatchNorm(use_running_average=True, name="bn")(x)
            return nn.Dense(2, name="head")(nn.relu(x).mean((1, 2)))

    template = Small().init(jax.random.key(1), X)
    names = {name: name for name in ("conv", "bn", "head")}
    variables = interop.from_haiku(params, state, template, names)
    expected, _ = model.apply(params, state, None, X, False)
    np.testing.assert_allclose(Small().apply(variables, X), expected, atol=1e-5)


def test_keras_and_back():
    """Its names and layouts; kernels are laid out as here."""
    weights = {
        "dense/kernel": RNG.standard_normal((4, 3)),
        "dense/bias": RNG.standard_normal(3),
        "norm/gamma": RNG.standard_normal(3),
        "norm/beta": RNG.standard_normal(3),
        "norm/moving_mean": RNG.standard_normal(3),
        "norm/moving_variance": RNG.random(3),
    }

    class Small(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = jaxbn.linen.BatchNorm(use_running_average=True, epsilon=1e-3)
            return norm(nn.Dense(3)(x))

    x = RNG.standard_normal((5, 4)).astype(np.float32)
    names = {"Dense_0": "dense", "BatchNorm_0": "norm"}
    variables = interop.from_keras(weights, Small().init(jax.random.key(0), x), names)
    z = x @ weights["dense/kernel"] + weights["dense/bias"]
    z = (z - weights["norm/moving_mean"]) / np.sqrt(
        weights["norm/moving_variance"] + 1e-3
    )
    expected = z * weights["norm/gamma"] + weights["norm/beta"]
    np.testing.assert_allclose(Small().apply(variables, x), expected, atol=1e-5)
    back = interop.to_keras(variables, names)
    assert set(back) == set(weights)
    for name, value in weights.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-6)
