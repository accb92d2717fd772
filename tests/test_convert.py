"""Weights of other packages: names, layouts, messages, and whole models beside them."""

import importlib.util

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from jaxbn import convert

RNG = np.random.default_rng(0)
BN = {name: RNG.standard_normal(3) for name in ("weight", "bias", "running_mean")}
BN["running_var"] = RNG.random(3)
WEIGHTS = {f"bn.{name}": value for name, value in BN.items()}
IMAGES = np.ones((2, 4, 4, 6), np.float32)
STATISTICS = {"moving_mean", "moving_variance"}  # Keras's.


def variables_of(module, x, name="bn"):
    """Returns the variables of a module, below a name."""
    variables = module.init(jax.random.key(0), x)
    return {collection: {name: tree} for collection, tree in variables.items()}


TEMPLATE = variables_of(jaxbn.linen.BatchNorm(True), np.ones((2, 3)))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_kernels_of_every_rank(rank):
    """PyTorch has the outputs first, [O, I, ...]; here they are last, [..., I, O]."""
    kernel = RNG.standard_normal((*range(5, 5 + rank), 2, 4)).astype(np.float32)
    tree = {"params": {"layer": {"kernel": kernel, "bias": np.arange(4.0)}}}
    names = {"layer": "net.0"}
    weights = convert.to_torch(tree, names)
    assert weights["net.0.weight"].shape == (4, 2, *kernel.shape[:-2])
    np.testing.assert_array_equal(weights["net.0.weight"][3, 1], kernel[..., 1, 3])
    template = jax.tree.map(np.zeros_like, tree)
    chex.assert_trees_all_equal(convert.from_torch(weights, template, names), tree)


def test_state_of_an_estimator_stays():
    layer = jaxbn.linen.BatchNorm(True, estimator="window")
    template = variables_of(layer, np.ones((2, 3)))
    weights = WEIGHTS | {"bn.num_batches_tracked": np.array(7)}
    stats = convert.from_torch(weights, template, {"bn": "bn"})["batch_stats"]["bn"]
    np.testing.assert_allclose(stats["mean"], BN["running_mean"], rtol=1e-6)
    assert stats["mean"].dtype == np.float32
    chex.assert_trees_all_equal(stats["means"], template["batch_stats"]["bn"]["means"])


def test_every_difference_is_listed():
    weights = WEIGHTS | {"fc.weight": np.ones((2, 2)), "bn.weight": np.ones(4)}
    del weights["bn.bias"]
    with pytest.raises(ValueError, match="The weights do not fit") as error:
        convert.from_torch(weights, TEMPLATE, {"bn": "bn", "other": "x"})
    text = str(error.value)
    for problem in (
        "`names` has 'other', which is no module of the tree",
        "`weights` has no 'bn.bias'",
        "'bn.weight' has the shape (4,), which does not fit (3,) of bn/scale",
        "'fc.weight' of `weights` is not used",
    ):
        assert problem in text
    assert text.count("\n") == 4
    with pytest.raises(ValueError, match="'bn' of the tree has no name"):
        convert.to_torch(TEMPLATE, {})
    tree = {"params": {"fc": {"kernel": np.zeros((2, 6))}}}
    with pytest.raises(ValueError, match="does not fit"):  # Of equal size.
        convert.from_torch({"fc.weight": np.ones((4, 3))}, tree, {"fc": "fc"})
    tree = {"params": {"relu": {"negative_slope": np.ones(())}}}
    with pytest.raises(ValueError, match="negative_slope of the tree has no count"):
        convert.to_torch(tree, {"relu": "0"})


def test_nnx_and_linen_trees_take_the_same_weights():
    layer = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state({"bn": layer}))
    ours = convert.from_torch(WEIGHTS, state, {"bn": "bn"})
    theirs = convert.from_torch(WEIGHTS, TEMPLATE, {"bn": "bn"})
    np.testing.assert_array_equal(ours["bn"]["var"], theirs["batch_stats"]["bn"]["var"])
    back = convert.to_torch(ours, {"bn": "bn"})
    assert back.pop("bn.num_batches_tracked") == 0
    chex.assert_trees_all_close(back, WEIGHTS, rtol=1e-6)


def test_random_streams_boxes_and_arrays_of_their_own():
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.fc = nnx.Linear(3, 2, rngs=rngs)

    state = nnx.state(Model())
    weights = convert.to_torch(nnx.to_pure_dict(state), {"fc": "fc"})
    assert set(weights) == {"fc.weight", "fc.bias"}
    assert all(value.flags.writeable for value in weights.values())
    chex.assert_trees_all_equal(weights, convert.to_torch(state, {"fc": "fc"}))
    init = nn.with_partitioning(nn.initializers.normal(), (None, "model"))
    tree = variables_of(nn.Dense(2, kernel_init=init), np.ones((1, 3)), "fc")
    made = convert.from_torch(weights, tree, {"fc": "fc"})
    np.testing.assert_array_equal(made["params"]["fc"]["bias"], weights["fc.bias"])
    chex.assert_trees_all_equal_structs(made, tree)


def test_half_precision():
    """It leaves as float32, which every package has, and is read as what it is."""
    half = jnp.array([1, -2.5, 3.140625], "bfloat16")
    weights = convert.to_torch({"params": {"fc": {"bias": half}}}, {"fc": "fc"})
    assert weights["fc.bias"].dtype == np.float32
    tree = {"params": {"fc": {"bias": np.zeros(3, np.float32)}}}
    made = convert.from_torch({"fc.bias": half}, tree, {"fc": "fc"})
    np.testing.assert_array_equal(made["params"]["fc"]["bias"], [1, -2.5, 3.140625])
    assert made["params"]["fc"]["bias"].dtype == np.float32


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.LayerNorm(), {"gamma", "beta"}),
        (nn.LayerNorm(use_scale=False), {"beta"}),
        (nn.GroupNorm(2, use_bias=False), {"gamma"}),
        (nn.InstanceNorm(use_scale=False), {"beta"}),
        (nn.RMSNorm(), {"gamma"}),
        (jaxbn.linen.BatchNorm(True), {"gamma", "beta"} | STATISTICS),
        (jaxbn.linen.BatchNorm(True, use_scale=False), {"beta"} | STATISTICS),
        (jaxbn.linen.BatchNorm(True, use_scale=False, use_bias=False), STATISTICS),
        (nn.Dense(2), {"kernel", "bias"}),
        (nn.Conv(2, (3, 3), use_bias=False), {"kernel"}),
        (nn.Embed(3, 2), {"embeddings"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_names_of_every_layer_of_flax(module, expected):
    """The variables are the layer's own, because a made-up tree could be wrong."""
    x = np.zeros(2, int) if isinstance(module, nn.Embed) else IMAGES
    tree = variables_of(module, x, "m")
    weights = convert.to_keras(tree, {"m": "m"})
    assert set(weights) == {f"m/{name}" for name in expected}
    chex.assert_trees_all_equal(convert.from_keras(weights, tree, {"m": "m"}), tree)


def test_a_name_that_only_some_modules_use():
    """RMSNormalization of Keras has a `scale`, and hk.Bias a `b`."""
    tree = {"params": {"m": {"scale": np.zeros(3)}}}
    made = convert.from_keras({"m/scale": np.arange(3.0)}, tree, {"m": "m"})
    np.testing.assert_array_equal(made["params"]["m"]["scale"], np.arange(3.0))
    with pytest.raises(ValueError, match="`weights` has no 'm/gamma'"):
        convert.from_keras({}, tree, {"m": "m"})
    tree = {"params": {"m": {"bias": np.zeros(3)}}}
    made = convert.from_haiku({"m": {"b": np.arange(3.0)}}, {}, tree, {"m": "m"})
    np.testing.assert_array_equal(made["params"]["m"]["bias"], np.arange(3.0))


def test_two_modules_of_one_name_and_one_without_a_name():
    """Tied weights are read into both places; different values cannot be written."""
    tree = {"params": {name: {"embedding": np.zeros((3, 2))} for name in "ab"}}
    names = {"a": "table", "b": "table"}
    weights = {"table.weight": np.arange(6.0).reshape(3, 2)}
    made = convert.from_torch(weights, tree, names)
    chex.assert_trees_all_equal(made["params"]["a"], made["params"]["b"])
    chex.assert_trees_all_equal(convert.to_torch(made, names), weights)
    made["params"]["b"]["embedding"] = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"b/embedding would be 'table.weight', and"):
        convert.to_torch(made, names)
    del made["params"]["b"]
    assert set(convert.to_torch(made, {"a": ""})) == {"weight"}


def test_keras_and_back():
    shapes = {
        "dense/kernel": (4, 3), "dense/bias": 3, "norm/gamma": 3, "norm/beta": 3,
        "norm/moving_mean": 3, "norm/moving_variance": 3,
    }  # fmt: skip
    weights = {name: RNG.random(shape) for name, shape in shapes.items()}
    net = nn.Sequential([nn.Dense(3), jaxbn.linen.BatchNorm(True, epsilon=1e-3)])
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    names = {"layers_0": "dense", "layers_1": "norm"}
    variables = convert.from_keras(weights, net.init(jax.random.key(0), x), names)
    z = (
        x @ weights["dense/kernel"]
        + weights["dense/bias"]
        - weights["norm/moving_mean"]
    )
    z = z / np.sqrt(weights["norm/moving_variance"] + 1e-3) * weights["norm/gamma"]
    expected = z + weights["norm/beta"]
    np.testing.assert_allclose(net.apply(variables, x), expected, atol=1e-5)
    back = convert.to_keras(variables, names)
    chex.assert_trees_all_close(back, weights, rtol=1e-6)


X = RNG.standard_normal((4, 9, 8, 3)).astype(np.float32)
MOMENTUM = 0.2  # PyTorch's, of the second normalisation.
NAMES = {"conv": "0", "bn": "1", "conv2": "3", "bn2": "4", "head": "8"}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        options = {"use_running_average": not train}
        second = {"momentum": 1 - MOMENTUM, "epsilon": 1e-3, "name": "bn2"}
        x = nn.Conv(6, (3, 3), padding=1, use_bias=False, name="conv")(x)
        x = jaxbn.linen.BatchNorm(momentum=0.9, name="bn", **options)(x)
        x = nn.Conv(5, (3, 2), 2, padding="VALID", name="conv2")(nn.relu(x))
        x = jaxbn.linen.BatchNorm(**second, **options)(x)
        return nn.Dense(2, name="head")(nn.relu(x).mean((1, 2)))


class Model(nnx.Module):
    """`Net` as an NNX model."""

    def __init__(self, weights):
        rngs = nnx.Rngs(0)
        norm = jaxbn.nnx.BatchNorm
        self.conv = nnx.Conv(3, 6, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn = norm(6, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(6, 5, (3, 2), 2, padding="VALID", rngs=rngs)
        self.bn2 = norm(5, momentum=1 - MOMENTUM, epsilon=1e-3, rngs=rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)
        made = convert.from_torch(weights, self.variables(), NAMES)
        state = nnx.state(self)
        nnx.replace_by_pure_dict(state, made)
        nnx.update(self, state)

    def variables(self):
        return nnx.to_pure_dict(nnx.state(self))

    def __call__(self, x):
        x = self.conv2(nnx.relu(self.bn(self.conv(x))))
        return self.head(nnx.relu(self.bn2(x)).mean((1, 2)))


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


def torch_input(requires_grad=False):
    import torch

    return torch.tensor(np.moveaxis(X, -1, 1).copy(), requires_grad=requires_grad)


def torch_steps(model, number=3, rate=0.05):
    """Returns the outputs in evaluation and in steps of plain SGD, and the weights."""
    import torch

    x = torch_input()
    outputs = [model.eval()(x).detach().numpy()]
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for _ in range(number):
        y = model(x)
        outputs.append(y.detach().numpy())
        optimizer.zero_grad()
        torch.sum(torch.sin(y)).backward()
        optimizer.step()
    return np.stack(outputs), model.state_dict()


def linen_variables(weights):
    template = Net().init(jax.random.key(0), X, train=False)
    return convert.from_torch(weights, template, NAMES)


def linen_loss(params, variables, x, train):
    given = variables | {"params": params}
    y, updates = Net().apply(given, x, train=train, mutable=["batch_stats"])
    return jnp.sum(jnp.sin(y)), (y, updates)


def linen_steps(weights, number=3, rate=0.05):
    variables = linen_variables(weights)
    outputs = [Net().apply(variables, X, train=False)]
    grad = jax.jit(jax.grad(linen_loss, has_aux=True), static_argnums=3)
    for _ in range(number):
        grads, (y, updates) = grad(variables["params"], variables, X, True)
        params = jax.tree.map(lambda p, g: p - rate * g, variables["params"], grads)
        variables = {"params": params, **updates}
        outputs.append(y)
    return np.stack(outputs), variables


def nnx_steps(weights, number=3, rate=0.05):
    model = Model(weights)
    model.eval()
    outputs = [model(X)]
    model.train()

    def loss(model):
        y = model(X)
        return jnp.sum(jnp.sin(y)), y

    for _ in range(number):
        grads, y = nnx.grad(loss, has_aux=True)(model)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda p, g: p - rate * g, params, grads))
        outputs.append(y)
    return np.stack(outputs), model.variables()


# With `-m exhaustive`: PyTorch is large, and README's command does not install it.
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="compares with PyTorch; `pip install torch` runs it",
)


@pytest.mark.exhaustive
@needs_torch
@pytest.mark.parametrize("steps", [linen_steps, nnx_steps])
def test_a_network_of_pytorch_goes_on_training(steps):
    model = torch_model()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    outputs, after = torch_steps(model)
    our_outputs, variables = steps(weights)
    np.testing.assert_allclose(our_outputs, outputs, atol=1e-5)
    back = convert.to_torch(variables, NAMES)
    assert set(back) == set(after)
    for name, value in after.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(back[name], value, atol=1e-5, err_msg=name)


@pytest.mark.exhaustive
@needs_torch
@pytest.mark.parametrize("train", [True, False])
def test_gradients_are_those_of_pytorch(train):
    """A bias before a normalisation has a gradient of 0, up to the others' rounding."""
    import torch

    model, x = torch_model().train(train), torch_input(requires_grad=True)
    variables = linen_variables(model.state_dict())
    torch.sum(torch.sin(model(x))).backward()
    expected = {name: each.grad.numpy() for name, each in model.named_parameters()}
    expected_dx = np.moveaxis(x.grad.numpy(), 1, -1)
    grad = jax.jit(jax.grad(linen_loss, (0, 2), has_aux=True), static_argnums=3)
    (grads, dx), _ = grad(variables["params"], variables, X, train)
    np.testing.assert_allclose(dx, expected_dx, atol=1e-5 * np.abs(expected_dx).max())
    actual = convert.to_torch({"params": grads}, NAMES)
    assert set(actual) == set(expected)
    atol = 1e-6 * max(np.abs(each).max() for each in expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=atol)


@pytest.mark.exhaustive
@needs_torch
def test_and_back_into_pytorch():
    import torch

    variables = Net().init(jax.random.key(1), X, train=False)
    weights = convert.to_torch(variables, NAMES)
    model = torch_model().eval()
    model.load_state_dict({name: torch.tensor(v) for name, v in weights.items()})
    y = model(torch_input()).detach().numpy()
    expected = Net().apply(variables, X, train=False)
    np.testing.assert_allclose(y, expected, atol=1e-5)


class Norms(nn.Module):
    """Every normalisation of Flax that PyTorch or Haiku has, and an embedding."""

    bare_has_bias: bool  # The layer `bare` has a bias alone, or a scale alone.

    @nn.compact
    def __call__(self, words):
        x = nn.Embed(7, 6, name="table")(words)
        x = nn.LayerNorm(epsilon=1e-5, name="layer")(x)
        x = nn.Dense(6, use_bias=False, name="dense")(x)
        has = {"use_bias": self.bare_has_bias, "use_scale": not self.bare_has_bias}
        x = nn.LayerNorm(epsilon=1e-5, name="bare", **has)(x)
        x = nn.GroupNorm(2, epsilon=1e-5, name="group")(x)
        return nn.RMSNorm(epsilon=1e-5, name="rms")(x)


WORDS = np.array([0, 3, 6, 3])
MODULES = {name: name for name in ("table", "layer", "dense", "bare", "group", "rms")}


def one_by_one(function):
    """Applies a function to each word: a group of Flax's has all places of a word."""
    return jax.vmap(lambda word: function(word[None])[0])(WORDS)


@pytest.mark.exhaustive
@needs_torch
def test_normalisations_of_pytorch():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential()
    for name, module in {
        "table": torch.nn.Embedding(7, 6),
        "layer": torch.nn.LayerNorm(6),
        "dense": torch.nn.Linear(6, 6, bias=False),
        "bare": torch.nn.LayerNorm(6, bias=False),
        "group": torch.nn.GroupNorm(2, 6),
        "rms": torch.nn.RMSNorm(6, eps=1e-5),
    }.items():
        model.add_module(name, module)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    net = Norms(bare_has_bias=False)
    template = net.init(jax.random.key(0), WORDS)
    variables = convert.from_torch(model.state_dict(), template, MODULES)
    y = one_by_one(lambda word: net.apply(variables, word))
    expected = model(torch.tensor(WORDS)).detach().numpy()
    np.testing.assert_allclose(y, expected, atol=1e-5)
    back = convert.to_torch(variables, MODULES)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(back[name], value.numpy())


@pytest.mark.exhaustive
def test_normalisations_of_haiku():
    hk = pytest.importorskip("haiku")

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
    params = model.init(jax.random.key(0), WORDS)
    net = Norms(bare_has_bias=True)
    template = net.init(jax.random.key(1), WORDS)
    variables = convert.from_haiku(params, {}, template, MODULES)
    expected = one_by_one(lambda word: model.apply(params, word))
    y = one_by_one(lambda word: net.apply(variables, word))
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.exhaustive
def test_batch_norm_of_haiku():
    hk = pytest.importorskip("haiku")

    def forward(x, training):
        x = hk.Conv2D(6, 3, name="layers_0")(x)
        x = hk.BatchNorm(True, True, 0.9, name="layers_1")(x, training)
        return hk.Linear(2, name="layers_3")(jax.nn.relu(x))

    model = hk.transform_with_state(forward)
    params, state = model.init(jax.random.key(0), X, True)
    _, state = model.apply(params, state, None, 2 * X + 1, True)
    layers = [nn.Conv(6, (3, 3)), jaxbn.linen.BatchNorm(True), nn.relu, nn.Dense(2)]
    net, names = nn.Sequential(layers), {name: name for name in params}
    template = net.init(jax.random.key(1), X)
    variables = convert.from_haiku(params, state, template, names)
    expected, _ = model.apply(params, state, None, X, False)
    np.testing.assert_allclose(net.apply(variables, X), expected, atol=1e-5)
