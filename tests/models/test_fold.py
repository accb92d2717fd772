"""Folded models compute what they did before, from fewer variables."""

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import jaxbn
from jaxbn import linen
from jaxbn.models._fold.nnx_model import FoldedBatchNorm

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((2, 8, 8, 4)), jnp.float32)
HALF = 3e-2  # The rounding of bfloat16, in sums of 36 products.


def with_random_values(tree):
    """Returns a tree with random parameters and positive variances."""
    rng = np.random.default_rng(0)

    def value(keys, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        if "var" in jax.tree_util.keystr(keys):
            return jnp.asarray(rng.uniform(0.5, 2, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, tree)


def norm(**fields):
    return linen.BatchNorm(use_running_average=True, **fields)


def call(model, x):
    return model(x)


def folded(net, x=X, prepared=with_random_values, tolerance=3e-6):
    """Checks that outputs agree; returns the new variables and the report."""
    variables = prepared(net.init(jax.random.key(0), x))
    new, report = jaxbn.fold(net, variables, x, call)
    expected, actual = (net.apply(each, x) for each in (variables, new))
    assert actual.dtype == expected.dtype
    # Float32 rounding of the layers, relative to the largest output.
    size = float(jnp.max(jnp.abs(expected.astype(jnp.float32))))
    np.testing.assert_allclose(
        np.asarray(actual, float), np.asarray(expected, float), atol=tolerance * size
    )
    return new, report


def places(report):
    return {row.path: (row.outcome, row.into) for row in report.layers}


BEFORE = {
    "groups": nn.Conv(6, (3, 3), feature_group_count=2),
    "transposed": nn.ConvTranspose(6, (3, 3), strides=(2, 2)),
    "dense": nn.Dense(6),
    "bfloat16": nn.Conv(6, (3, 3), dtype=jnp.bfloat16),
    "two axes in": nn.DenseGeneral(6, axis=(-2, -1), use_bias=False),
}
RARE = {
    "1d": nn.Conv(6, (3,)),
    "3d": nn.Conv(6, (3, 1, 2), use_bias=False),
    "depthwise": nn.Conv(8, (3, 3), feature_group_count=4, use_bias=False),
    "dilated": nn.Conv(6, (3, 3), kernel_dilation=2, strides=2),
    "transposed, flipped": nn.ConvTranspose(6, (3, 3), transpose_kernel=True),
    "local": nn.ConvLocal(6, (3, 3)),
    "circular": nn.Conv(6, (3, 3), padding="CIRCULAR"),
    "two features": nn.DenseGeneral((2, 3)),
    "einsum": nn.Einsum((4, 6), "abcd,de->abce"),
    "remat": nn.remat(nn.Conv)(6, (3, 3)),
    "jit": nn.jit(nn.Conv)(6, (3, 3)),
}


@pytest.mark.first_case
@pytest.mark.parametrize(
    "name",
    [*BEFORE, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in RARE)],
)
def test_the_layer_before(name):
    layer = (BEFORE | RARE)[name]
    axis = (-2, -1) if name == "two features" else -1
    net = nn.Sequential([layer, norm(axis=axis), nn.relu])
    tolerance = HALF if name == "bfloat16" else 3e-6
    new, report = folded(net, X[None] if name == "3d" else X, tolerance=tolerance)
    assert places(report) == {"layers_1": ("folded", "layers_0")}
    assert "layers_1" not in new["params"]
    assert "batch_stats" not in new
    has_bias = "bias" in new["params"]["layers_0"]
    rest = set(new["folded"]["layers_1"])
    assert rest == ({"dtype"} if has_bias else {"dtype", "bias"})


def test_the_report():
    layers = [nn.Dense(4), norm(), nn.tanh, norm(), nn.Dense(4, use_bias=False)]
    _, report = folded(nn.Sequential([*layers, norm()]))
    assert str(report).splitlines() == [
        "layers_1  folded into layers_0",
        "layers_3  a scale and a bias: `tanh` stands before it",
        "layers_5  folded into layers_4",
    ]


class Program(nn.Module):
    """A function of parameters, a normalisation and an input, `[4, 3]`."""

    function: object

    @nn.compact
    def __call__(self, x):
        ones = nn.initializers.ones
        kernel, bias = (
            self.param(n, ones, s) for n, s in (("k", (3, 3)), ("b", (1, 3)))
        )
        return self.function(kernel, bias, norm(name="norm"), x)


@pytest.mark.parametrize(
    "function",
    [
        lambda k, b, norm, x: norm(b + (x @ k).astype(jnp.bfloat16)),
        lambda k, b, norm, x: norm((x.reshape(2, 2, 3) @ k).reshape(4, 3) + b),
        lambda k, b, norm, x: norm(jnp.einsum("ki,ni->kn", k, x).T),
    ],
)
def test_operations_that_only_move_data_do_not_matter(function):
    _, report = folded(Program(function), X[0, :4, 0, :3], tolerance=HALF)
    assert report.layers[0].outcome == "folded"


REASONS = [
    (lambda k, b, norm, x: norm(jnp.tanh(x @ k)), "`tanh` stands before"),
    (lambda k, b, norm, x: norm(x @ k + x), "a sum stands before"),
    (lambda k, b, norm, x: norm(x @ k + b[:, :1]), "stands before it"),
    (lambda k, b, norm, x: norm(x @ k + b + b), "a sum stands"),
    (lambda k, b, norm, x: norm((x @ k).astype(int)), "cast that rounds"),
    (lambda k, b, norm, x: norm(y := x @ k) + jnp.sin(y), "used elsewhere too"),
    (lambda k, b, norm, x: norm(x @ k) + jnp.sum(k), "computed or shared"),
    (lambda k, b, norm, x: norm(x @ jnp.tanh(k)), "computed or shared"),
    (lambda k, b, norm, x: norm(x @ jnp.ones((3, 3))), "computed or shared"),
    (lambda k, b, norm, x: norm(x), "nothing stands before it"),
]


@pytest.mark.parametrize(("function", "reason"), REASONS)
def test_reasons(function, reason):
    _, report = folded(Program(function), X[0, :4, 0, :3])
    (row,) = report.layers
    assert row.outcome == "affine"
    assert reason in row.reason


class InALoop(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = norm(name="bn")
        x = layer(nn.Dense(4)(x))
        return jax.lax.fori_loop(0, 2, lambda _, x: layer(x), x)


class Remembering(nn.Module):
    """Its state is added like a bias, but is not one."""

    @nn.compact
    def __call__(self, x):
        state = self.variable("cache", "h", jnp.zeros, (4,))
        y = nn.Dense(4, use_bias=False)(x) + jnp.expand_dims(state.value, (0, 1, 2))
        return norm()(y)


@pytest.mark.parametrize("net", [InALoop(), Remembering()], ids=repr)
def test_what_only_looks_like_a_layer_before_it(net):
    _, report = folded(net)
    assert {row.outcome for row in report.layers} == {"affine"}


def test_options_of_the_layer_and_channels_in_front():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(4)(x)
            y = norm(activation="silu", use_scale=False)(y, residual=x)
            y = norm(use_bias=False, estimator="debiased")(nn.Dense(3)(y))
            y = norm(axis=1)(jnp.moveaxis(nn.Conv(6, (3, 3))(y), -1, 1))
            return norm(use_scale=False, use_bias=False, dtype=jnp.bfloat16)(nn.relu(y))

    new, report = folded(Net(), tolerance=HALF)
    found = [place for place, _ in places(report).values()]
    assert found == ["folded", "folded", "folded", "affine"]
    assert sorted(new) == ["folded", "params"]


def test_layers_that_cannot_be_folded_stay():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(norm()(nn.Dense(4)(x))), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            twice = norm(name="twice")
            x = nn.relu(twice(nn.Dense(4)(x)))
            x = nn.BatchNorm(use_running_average=True, name="flax")(twice(x))
            axes = {"params": 0, "batch_stats": 0}
            blocks = nn.scan(Block, axes, split_rngs={"params": True}, length=3)
            return blocks(name="blocks")(x, None)[0]

    new, report = folded(Net())
    assert places(report) == {
        "twice": ("affine", None),
        "flax": ("left", None),
        "blocks/BatchNorm_0": ("left", None),
    }
    assert "import `BatchNorm` from `jaxbn.linen`" in str(report)
    assert set(new["batch_stats"]) == {"flax", "blocks"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_dtype_of_the_output_stays(dtype):
    layers = [nn.Dense(4, param_dtype=dtype, dtype=dtype), norm(param_dtype=dtype)]
    folded(nn.Sequential(layers), X.astype(dtype), tolerance=HALF)
    bare = norm(use_scale=False, use_bias=False)
    folded(nn.Sequential([layers[0], bare]), tolerance=HALF)


def test_a_model_that_is_the_layer():
    new, report = folded(norm())
    assert places(report) == {"": ("affine", None)}
    assert str(report).startswith("(the model)  a scale and a bias")
    assert set(new["folded"]) == {"scale", "bias", "dtype"}


@pytest.mark.exhaustive
def test_boxes_shardings_and_frozen_dicts():
    boxed = nn.with_partitioning
    kernel_init = boxed(nn.initializers.lecun_normal(), (None, "m"))
    scale_init = boxed(nn.initializers.ones, ("m",))
    net = nn.Sequential(
        [nn.Dense(8, kernel_init=kernel_init), norm(scale_init=scale_init)]
    )
    new, _ = folded(net, prepared=lambda v: flax.core.freeze(with_random_values(v)))
    assert isinstance(new["params"]["layers_0"]["kernel"], nn.Partitioned)
    assert isinstance(new, flax.core.FrozenDict)
    mesh = jax.make_mesh((8,), ("m",), axis_types=(jax.sharding.AxisType.Auto,))

    def split(variables):
        specs = {1: jax.P("m"), 2: jax.P(None, "m")}
        return jax.tree.map(
            lambda leaf: jax.device_put(
                leaf, jax.NamedSharding(mesh, specs[leaf.ndim])
            ),
            with_random_values(variables),
        )

    new, _ = folded(nn.Sequential([nn.Dense(8), norm()]), prepared=split)
    assert new["params"]["layers_0"]["kernel"].sharding.spec == jax.P(None, "m")
    # Arrays that were on no particular device can be used on any.
    net = nn.Sequential([nn.Dense(4), norm()])
    new, _ = folded(net)
    there = jax.device_put(X, jax.devices()[1])
    assert jax.jit(net.apply)(new, there).devices() == {jax.devices()[1]}


def test_training_is_refused_before_and_after():
    net = nn.Sequential([nn.Dense(4), norm(), nn.relu])
    variables = net.init(jax.random.key(0), X)
    new, _ = jaxbn.fold(net, variables, X, call)
    with pytest.raises(ValueError, match="got none; a model that is folded has none"):
        jaxbn.fold(net, new, X, call)
    train = nn.Sequential([nn.Dense(4), linen.BatchNorm(False), nn.relu])
    with pytest.raises(ValueError, match="has removed the statistics"):
        train.apply(new, X)
    for given in (variables, new):
        with pytest.raises(ValueError, match="evaluation mode, got layer 'layers_1'"):
            jaxbn.fold(train, given, X, call)


class Wrapped(nn.Module):
    inner: nn.Module

    def __call__(self, x):
        return self.inner(x)


TRAINING = {
    "without updates": linen.BatchNorm(False, update_running_average=False),
    "updates in evaluation": linen.BatchNorm(True, update_running_average=True),
    "with a policy": linen.BatchNorm(False, group_size=1, sync=jaxbn.sync.Stale(0.5)),
    "Flax's": nn.BatchNorm(False),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_a_layer_in_training_mode_is_named(kind):
    net = nn.Sequential([nn.Dense(4), norm(), Wrapped(TRAINING[kind])])
    variables = net.init(jax.random.key(0), X)
    message = "`call` must run the model in evaluation mode, got layer 'layers_2/inner'"
    with pytest.raises(ValueError, match=message):
        jaxbn.fold(net, variables, X, call)


class Asking(nn.Module):
    """Trains if the collection is mutable, as some networks of others do."""

    collection: str = "batch_stats"

    @nn.compact
    def __call__(self, x):
        evaluates = not self.is_mutable_collection(self.collection)
        calls = self.variable("cache", "calls", jnp.zeros, ())
        if self.is_mutable_collection("cache"):
            calls.value += 1.0
        y = linen.BatchNorm(evaluates, momentum=0.5)(nn.Dense(4)(x))
        return linen.BatchNorm(name="last")(nn.relu(y), evaluates)


@pytest.mark.parametrize(
    "collection", ["batch_stats", "batch_moments", "batch_sync", "folded", "params"]
)
def test_a_model_that_asks_what_is_mutable_is_evaluated(collection):
    def prepared(variables):
        return {collection: {"other": jnp.zeros(())}, **with_random_values(variables)}

    _, report = folded(Asking(collection), prepared=prepared)
    assert [row.outcome for row in report.layers] == ["folded", "affine"]


def test_frozen_layers_are_evaluated_in_any_mode():
    train = nn.Sequential([nn.Dense(4), linen.BatchNorm(False), nn.relu])
    variables = with_random_values(train.init(jax.random.key(0), X))
    new, report = jaxbn.fold(train, variables, X, jaxbn.freeze(call))
    assert [row.outcome for row in report.layers] == ["folded"]
    evaluated = train.clone(layers=[train.layers[0], norm(), nn.relu])
    expected = evaluated.apply(variables, X)
    np.testing.assert_allclose(evaluated.apply(new, X), expected, atol=1e-4)


def test_a_model_that_takes_its_own_gradient():
    net = nn.Sequential([nn.Dense(4), norm()])
    variables = with_random_values(net.init(jax.random.key(0), X))

    def slope(model, x):
        return jax.grad(lambda x: jnp.sum(model(x) ** 2))(x)

    new, _ = jaxbn.fold(net, variables, X, slope)
    expected = net.apply(variables, X, method=slope)
    # Float32 rounding of two products, relative to the largest slope.
    atol = 1e-5 * float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(net.apply(new, X, method=slope), expected, atol=atol)


def test_numbers_that_a_kernel_cannot_hold_stay_outside():
    net = nn.Sequential([nn.Dense(4, param_dtype=jnp.float16), norm(epsilon=1e-12)])
    variables = net.init(jax.random.key(0), X)
    stats = {**variables["batch_stats"]["layers_1"], "var": jnp.zeros(4)}
    variables = {**variables, "batch_stats": {"layers_1": stats}}
    new, report = jaxbn.fold(net, variables, X, call)
    assert report.layers[0].outcome == "affine"
    assert "cannot hold" in report.layers[0].reason
    np.testing.assert_allclose(net.apply(new, X), net.apply(variables, X), rtol=1e-5)


class NnxNet(nnx.Module):
    """Folded layers, one after a tanh, one used twice, and one of Flax."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(4, 8, (3, 3), use_bias=False, rngs=rngs)
        self.relu = jaxbn.nnx.BatchNorm(8, activation="relu", rngs=rngs)
        self.transposed = nnx.ConvTranspose(8, 6, (3, 3), rngs=rngs)
        self.bare = jaxbn.nnx.BatchNorm(6, use_scale=False, use_bias=False)
        debiased = jaxbn.nnx.BatchNorm(6, estimator="debiased", rngs=rngs)
        self.head = nnx.List([debiased, nnx.Linear(6, 4, rngs=rngs)])
        self.shared = nnx.Linear(4, 4, rngs=rngs)
        self.twice = jaxbn.nnx.BatchNorm(4, rngs=rngs)
        self.flax = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.bare(self.transposed(self.relu(self.conv(x)))))
        for layer in self.head:
            x = layer(x)
        x = self.flax(jnp.tanh(self.twice(self.shared(x))))
        return self.twice(self.shared(x))


def test_a_whole_nnx_model():
    graph, state = nnx.split(NnxNet())
    model = nnx.merge(graph, with_random_values(state))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    new, report = jaxbn.fold(model, None, X, call)
    assert places(report) == {
        "relu": ("folded", "conv"),
        "bare": ("folded", "transposed"),
        "head/0": ("affine", None),
        "twice": ("affine", None),
        "flax": ("left", None),
    }
    assert isinstance(new.head[0], FoldedBatchNorm)
    assert new.relu.scale is None
    assert new.relu.bias is not None  # The convolution has none.
    assert new.bare.bias is None
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
    assert model.relu.use_running_average is False
    model.eval()
    # Float32 rounding of nine layers, of outputs of about 1.
    expected, actual = (nnx.jit(call)(each, X) for each in (model, new))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    number = [len(jax.tree.leaves(nnx.state(each))) for each in (new, model)]
    assert number[0] < number[1]


class NnxRemembering(nnx.Module):
    """Its state is added like a bias, but is not one."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(4, 4, use_bias=False, rngs=rngs)
        self.norm = jaxbn.nnx.BatchNorm(4, rngs=rngs)
        self.state = nnx.Variable(jnp.zeros((1, 4)))

    def __call__(self, x):
        y = self.norm(self.dense(x) + self.state[...])
        self.state[...] = y.mean(0, keepdims=True)
        return y


def test_what_an_nnx_model_writes_is_no_parameter():
    model, x = NnxRemembering(), X[0, 0]
    model(x)
    new, _ = jaxbn.fold(model, None, x, call)
    model.eval()
    for _ in range(3):
        np.testing.assert_allclose(new(x), model(x), atol=1e-5)


@pytest.mark.first_case
@pytest.mark.parametrize("dtype", [None, jnp.float16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_a_folded_nnx_layer_is_called_as_the_layer_was(dtype, param_dtype):
    options = {"dtype": dtype, "param_dtype": param_dtype, "activation": "relu"}
    old = jaxbn.nnx.BatchNorm(3, **options, rngs=nnx.Rngs(0))
    old.eval()
    new = FoldedBatchNorm(old, None, None)
    x = jnp.arange(6.0).reshape(2, 3)
    for each in (x, x.astype(jnp.bfloat16), x.astype(int)):
        assert new(each).dtype == old(each).dtype
    new = nnx.Sequential(FoldedBatchNorm(old, jnp.array([1.0, -1.0, 2.0]), jnp.ones(3)))
    y = new.layers[0](x, True, mask=x > 0, residual=-x)
    np.testing.assert_array_equal(y, np.maximum(x * jnp.array([[0, -2, 1]]) + 1, 0))
    new.train()
    for options in ({}, {"use_running_average": True, "update_running_average": True}):
        with pytest.raises(ValueError, match="has removed the statistics"):
            new.layers[0](x, **options)


class Forced(nnx.Module):
    def __init__(self):
        self.norm = jaxbn.nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(x, use_running_average=False)


def test_mistakes():
    with pytest.raises(ValueError, match="has removed the statistics"):
        jaxbn.fold(Forced(), None, X, call)
    with pytest.raises(ValueError, match="`variables` must be all that"):
        jaxbn.fold(norm(), None, X, call)
    with pytest.raises(ValueError, match="None for an NNX model"):
        jaxbn.fold(Forced(), {}, X, call)
    dense = nn.Dense(2).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="must run `BatchNorm` layers of jaxbn"):
        jaxbn.fold(nn.Dense(2), dense, X, call)


def exported(function, x):
    """Returns the function from its serialised program, for a batch of any size."""
    shape = (*export.symbolic_shape("batch"), *x.shape[1:])
    made = export.export(jax.jit(function))(jax.ShapeDtypeStruct(shape, x.dtype))
    return export.deserialize(made.serialize()).call


@pytest.mark.exhaustive
def test_folded_models_are_exported():
    net = nn.Sequential([nn.Conv(4, (3, 3)), norm(), nn.relu])
    variables = with_random_values(net.init(jax.random.key(0), X))
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)  # It is enough for an example.
    new, _ = jaxbn.fold(net, variables, shape, call)
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(4, 4, rngs=rngs), jaxbn.nnx.BatchNorm(4, rngs=rngs)
    model = nnx.Sequential(*layers)
    model(X)
    model.eval()
    for old, each in (
        (lambda x: net.apply(variables, x), lambda x: net.apply(new, x)),
        (model, jaxbn.fold(model, None, X, call).model),
    ):
        program = exported(each, X)
        for part in (X, X[:1]):
            np.testing.assert_allclose(program(part), old(part), atol=1e-4)


def errors(net, size):
    """Returns the errors of the folded and the unfolded network.

    The reference is the unfolded network in float64.
    """
    x = jnp.asarray(RNG.standard_normal((2, size, size, 3)), jnp.float32)
    variables = jax.jit(lambda x: net.init(jax.random.key(0), x, train=True))(x)
    rng = np.random.default_rng(0)

    def with_scale(keys, leaf):  # A block's last scale of 0 would hide it.
        if "scale" not in jax.tree_util.keystr(keys):
            return leaf
        return jnp.asarray(rng.uniform(0.5, 1, leaf.shape), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(with_scale, variables["params"])
    variables = jaxbn.recalibrate(
        net, {**variables, "params": params}, [x], lambda net, x: net(x, train=True)
    )
    new, report = jaxbn.fold(net, variables, x, lambda net, x: net(x, train=False))
    assert {row.outcome for row in report.layers} == {"folded"}
    run = jax.jit(lambda variables, x: net.apply(variables, x, train=False))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        exact = np.asarray(run(wide, np.asarray(x, np.float64)))
    return [float(np.abs(run(v, x) - exact).max()) for v in (new, variables)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["ResNet50", "SmallNetwork"])
def test_networks_to_rounding(name):
    from experiments.networks import models

    net = {
        "ResNet50": lambda: models.ResNet50(blocks=(1, 2)),
        "SmallNetwork": lambda: models.SmallNetwork(
            classes=10, blocks=((16, 2), (16, 1))
        ),
    }[name]()
    new, old = errors(net, 32 if name == "SmallNetwork" else 128)
    assert new < max(3 * old, 1e-5)
