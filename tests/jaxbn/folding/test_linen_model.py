"""Folded Linen models put out what they did, from fewer variables."""

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn import linen
from tests.jaxbn.folding import random_values

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((2, 8, 8, 4)), jnp.float32)


def norm(**fields):
    return linen.BatchNorm(use_running_average=True, **fields)


def call(model, x):
    return model(x)


def folded(net, x=X, prepared=lambda variables: variables, tolerance=3e-6):
    """Checks that outputs agree; returns the new variables and what was done."""
    variables = prepared(random_values.like(net.init(jax.random.key(0), x)))
    new, report = jaxbn.fold(net, variables, x, call)
    expected, actual = net.apply(variables, x), net.apply(new, x)
    assert actual.dtype == expected.dtype
    # Float32 rounding of the layers, relative to the largest output.
    size = float(jnp.max(jnp.abs(expected.astype(jnp.float32))))
    tolerance = 1e-2 if expected.dtype == jnp.bfloat16 else tolerance
    np.testing.assert_allclose(
        np.asarray(actual, float), np.asarray(expected, float), atol=tolerance * size
    )
    return new, {row.path: (row.place, row.into) for row in report.layers}


CONVOLUTIONS = {
    "1d": nn.Conv(6, (3,)),
    "3d": nn.Conv(6, (3, 1, 2), use_bias=False),
    "groups": nn.Conv(6, (3, 3), feature_group_count=2),
    "depthwise": nn.Conv(8, (3, 3), feature_group_count=4, use_bias=False),
    "dilated": nn.Conv(6, (3, 3), kernel_dilation=2, strides=2),
    "transposed": nn.ConvTranspose(6, (3, 3), strides=(2, 2)),
    "transposed, flipped": nn.ConvTranspose(6, (3, 3), transpose_kernel=True),
    "local": nn.ConvLocal(6, (3, 3)),
    "circular": nn.Conv(6, (3, 3), padding="CIRCULAR"),
    "dense": nn.Dense(6),
    "two features": nn.DenseGeneral((2, 3)),
    "two axes in": nn.DenseGeneral(6, axis=(-2, -1), use_bias=False),
    "einsum": nn.Einsum((4, 6), "abcd,de->abce"),
    "bfloat16": nn.Conv(6, (3, 3), dtype=jnp.bfloat16),
    "remat": nn.remat(nn.Conv)(6, (3, 3)),
    "jit": nn.jit(nn.Conv)(6, (3, 3)),
}


QUICK = ("groups", "transposed", "dense", "bfloat16", "two axes in")


@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in CONVOLUTIONS
            if name not in QUICK
        ),
    ],
)
def test_the_layer_before(name):
    layer = CONVOLUTIONS[name]
    x = X[None] if name == "3d" else X
    axis = (-2, -1) if name == "two features" else -1
    tolerance = 3e-2 if name == "bfloat16" else 3e-6  # Of sums of 36 such products.
    net = nn.Sequential([layer, norm(axis=axis), nn.relu])
    new, places = folded(net, x, tolerance=tolerance)
    assert places == {"layers_1": ("before", "layers_0")}
    assert "layers_1" not in new["params"]
    assert "batch_stats" not in new
    has_bias = "bias" in new["params"]["layers_0"]
    left = set(new["folded"]["layers_1"])
    assert left == ({"dtype"} if has_bias else {"dtype", "bias"})


def test_a_channel_axis_in_front():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnp.moveaxis(nn.Conv(6, (3, 3))(x), -1, 1)
            return norm(axis=1)(x)

    assert folded(Net())[1] == {"BatchNorm_0": ("before", "Conv_0")}


class After(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(norm(name="norm")(nn.tanh(x)))


@pytest.mark.parametrize(
    "name", ["dense", "two axes in", "two features", "einsum", "unpadded", "groups"]
)
def test_the_layer_after(name):
    layer = {
        "unpadded": nn.Conv(6, (3, 3), padding="VALID"),
        "groups": nn.Conv(6, (1, 1), feature_group_count=2),
        "two axes in": nn.DenseGeneral(6, axis=(-2, -1)),
    }.get(name) or CONVOLUTIONS[name]
    if name == "two axes in":
        layer = layer.clone(use_bias=True)
    new, places = folded(After(layer))
    assert places == {"norm": ("after", "layer")}
    assert set(new["folded"]["norm"]) == {"dtype"}


def test_a_padded_layer_after_stays():
    _, places = folded(After(nn.Conv(6, (3, 3))))
    assert places == {"norm": ("affine", None)}


def test_activation_residual_and_options_of_the_layer():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(4)(x)
            y = norm(activation="silu", use_scale=False)(y, residual=x)
            y = norm(use_bias=False, estimator="debiased")(nn.Dense(3)(y))
            return norm(use_scale=False, use_bias=False, dtype=jnp.bfloat16)(nn.relu(y))

    new, places = folded(Net())
    assert [place for place, _ in places.values()] == ["before", "before", "affine"]
    assert sorted(new) == ["folded", "params"]


def test_what_cannot_be_folded_stays():
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
            blocks = nn.scan(
                Block,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=3,
            )
            return blocks(name="blocks")(x, None)[0]

    new, places = folded(Net())
    assert places == {
        "twice": ("affine", None),
        "flax": ("left", None),
        "blocks/BatchNorm_0": ("left", None),
    }
    assert set(new["batch_stats"]) == {"flax", "blocks"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_dtype_of_the_output_stays(dtype):
    layers = [nn.Dense(4, param_dtype=dtype, dtype=dtype), norm(param_dtype=dtype)]
    folded(nn.Sequential(layers), X.astype(dtype))
    folded(nn.Sequential([layers[0], norm(use_scale=False, use_bias=False)]))


def test_a_model_that_is_the_layer_and_one_without_variables_of_its_own():
    new, places = folded(norm())
    assert places == {"": ("affine", None)}
    assert set(new["folded"]) == {"scale", "bias", "dtype"}
    folded(nn.Sequential([nn.Dense(4), norm(use_scale=False, use_bias=False)]))


def test_boxes_shardings_and_frozen_dicts():
    def boxed(init, names):
        return nn.with_partitioning(init, names)

    net = nn.Sequential(
        [
            nn.Dense(8, kernel_init=boxed(nn.initializers.lecun_normal(), (None, "m"))),
            norm(scale_init=boxed(nn.initializers.ones, ("m",))),
        ]
    )
    new, _ = folded(net, prepared=flax.core.freeze)
    assert isinstance(new["params"]["layers_0"]["kernel"], nn.Partitioned)
    assert isinstance(new, flax.core.FrozenDict)
    mesh = jax.make_mesh((8,), ("m",), axis_types=(jax.sharding.AxisType.Auto,))
    plain = nn.Sequential([nn.Dense(8), norm()])

    def split(variables):
        last = (
            jax.NamedSharding(mesh, jax.P(None, "m")),
            jax.NamedSharding(mesh, jax.P("m")),
        )
        return jax.tree.map(
            lambda leaf: jax.device_put(leaf, last[leaf.ndim == 1]), variables
        )

    new, _ = folded(plain, prepared=split)
    assert new["params"]["layers_0"]["kernel"].sharding.spec == jax.P(None, "m")


def test_folded_variables_can_be_folded_again_and_are_not_trained():
    net = nn.Sequential([nn.Dense(4), norm(), nn.relu])
    variables = random_values.like(net.init(jax.random.key(0), X))
    before = jax.tree.map(jnp.copy, variables)
    new, _ = jaxbn.fold(net, variables, X, call)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    with pytest.raises(ValueError, match="got none"):
        jaxbn.fold(net, new, X, call)
    train = nn.Sequential(
        [nn.Dense(4), linen.BatchNorm(use_running_average=False), nn.relu]
    )
    with pytest.raises(ValueError, match="has removed the statistics"):
        train.apply(new, X)
    with pytest.raises(ValueError, match="evaluation mode, got layer 'layers_1'"):
        jaxbn.fold(train, variables, X, call)
    with pytest.raises(ValueError, match="evaluation mode, got layer 'layers_1'"):
        jaxbn.fold(train, new, X, call)


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
    net = Asking(collection)
    variables = random_values.like(net.init(jax.random.key(0), X))
    if collection not in variables:
        variables[collection] = {"other": jnp.zeros(())}
    new, report = jaxbn.fold(net, variables, X, call)
    assert [row.place for row in report.layers] == ["before", "affine"]
    expected = net.apply(variables, X)
    # Float32 rounding of two layers, relative to the largest output.
    atol = 3e-6 * float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(net.apply(new, X), expected, atol=atol)


TRAINING = {
    "jaxbn's": linen.BatchNorm(False),
    "without updates": linen.BatchNorm(False, update_running_average=False),
    "updates in evaluation": linen.BatchNorm(True, update_running_average=True),
    "with a policy": linen.BatchNorm(
        False, group_size=1, sync=jaxbn.sync_policies.Stale(0.5)
    ),
    "Flax's": nn.BatchNorm(False),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_a_layer_in_training_mode_is_named(kind):
    net = nn.Sequential([nn.Dense(4), norm(), Wrapped(TRAINING[kind])])
    variables = net.init(jax.random.key(0), X)
    message = "`call` must run the model in evaluation mode, got layer 'layers_2/inner'"
    with pytest.raises(ValueError, match=message):
        jaxbn.fold(net, variables, X, call)


class Wrapped(nn.Module):
    inner: nn.Module

    def __call__(self, x):
        return self.inner(x)


def test_frozen_layers_are_evaluated_in_any_mode():
    train = nn.Sequential([nn.Dense(4), linen.BatchNorm(False), nn.relu])
    variables = random_values.like(train.init(jax.random.key(0), X))
    frozen = jaxbn.freeze(call)
    new, report = jaxbn.fold(train, variables, X, frozen)
    assert [row.place for row in report.layers] == ["before"]
    evaluated = train.clone(layers=[train.layers[0], norm(), nn.relu])
    np.testing.assert_allclose(
        evaluated.apply(new, X), evaluated.apply(variables, X), atol=1e-4
    )


class Vmapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.vmap(
            nn.Dense,
            in_axes=1,
            out_axes=1,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        return dense(3)(norm()(nn.tanh(x)))


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


@pytest.mark.parametrize("net", [Vmapped(), InALoop(), Remembering()])
def test_what_only_looks_like_a_layer_beside_it(net):
    _, places = folded(net)
    assert {place for place, _ in places.values()} == {"affine"}


def test_a_model_that_takes_its_own_gradient():
    net = nn.Sequential([nn.Dense(4), norm()])
    variables = random_values.like(net.init(jax.random.key(0), X))

    def slope(model, x):
        return jax.grad(lambda x: jnp.sum(model(x) ** 2))(x)

    new, _ = jaxbn.fold(net, variables, X, slope)
    expected = net.apply(variables, X, method=slope)
    # Float32 rounding of two products, relative to the largest slope.
    atol = 1e-5 * float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(net.apply(new, X, method=slope), expected, atol=atol)


def test_arrays_go_where_they_could_before():
    net = nn.Sequential([nn.Dense(4), norm()])
    variables = random_values.like(net.init(jax.random.key(0), X))
    new, _ = jaxbn.fold(net, variables, X, call)
    there = jax.device_put(X, jax.devices()[1])
    assert jax.jit(net.apply)(new, there).devices() == {jax.devices()[1]}


def test_numbers_that_a_kernel_cannot_hold_stay_outside():
    net = nn.Sequential([nn.Dense(4, param_dtype=jnp.float16), norm(epsilon=1e-12)])
    variables = net.init(jax.random.key(0), X)
    stats = {**variables["batch_stats"]["layers_1"], "var": jnp.zeros(4)}
    variables = {**variables, "batch_stats": {"layers_1": stats}}
    new, report = jaxbn.fold(net, variables, X, call)
    assert report.layers[0].place == "affine"
    assert "cannot hold" in report.layers[0].reason
    np.testing.assert_allclose(net.apply(new, X), net.apply(variables, X), rtol=1e-5)
