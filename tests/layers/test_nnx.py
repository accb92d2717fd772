"""`jaxbn.nnx.BatchNorm` beside Flax's."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
import jaxbn.testing

X = (1 + np.random.default_rng(0).standard_normal((8, 4, 3))).astype(np.float32)


def make(cls=jaxbn.nnx.BatchNorm, features=3, **options):
    """A layer whose variables are not those of a new one."""
    layer = cls(features, rngs=nnx.Rngs(0), **options)
    for place, name in enumerate(("mean", "var", "scale", "bias")):
        variable = getattr(layer, name)
        if variable is not None:
            size = variable[...].size
            moved = jnp.arange(size).reshape(variable.shape) / 8 + place / 16
            variable[...] = variable[...] + moved.astype(variable.dtype)
    return layer


class LikeFlaxTest(chex.TestCase):
    def test_arguments(self):
        ours, theirs = (
            inspect.signature(cls.__init__).parameters
            for cls in (jaxbn.nnx.BatchNorm, nnx.BatchNorm)
        )
        assert [name for name in ours if name in theirs] == list(theirs)
        for name, parameter in theirs.items():
            if name in ("use_fast_variance", "rngs"):
                continue  # The fast formula only on request, keys only where needed.
            assert ours[name].default == parameter.default, name
            assert ours[name].kind == parameter.kind, name

    @parameterized.product(
        train=(True, False),
        options=(
            {},
            {"momentum": 0.5, "epsilon": 0.1},
            {"use_scale": False},
            {"use_bias": False, "use_scale": False},
            {"dtype": jnp.bfloat16},
            {"param_dtype": jnp.bfloat16},
            {"use_fast_variance": True},
        ),
    )
    def test_same_numbers_and_variables(self, train, options):
        results = []
        for cls in (nnx.BatchNorm, jaxbn.nnx.BatchNorm):
            own = {"unbiased": False} if cls is jaxbn.nnx.BatchNorm else {}
            layer = make(cls, use_running_average=not train, **options, **own)
            results.append((layer(X), nnx.state(layer)))
        (flax_y, flax_state), (our_y, our_state) = results
        assert our_y.dtype == flax_y.dtype
        atol = 0.1 if options.get("dtype") == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(
            np.float32(our_y), np.float32(flax_y), rtol=1e-5, atol=atol
        )
        chex.assert_trees_all_equal_structs(our_state, flax_state)
        chex.assert_trees_all_close(our_state, flax_state, rtol=0.02, atol=1e-6)

    def test_channels_first_and_mask(self):
        mask = np.arange(8)[:, None, None] < 5
        results = [
            (y, nnx.state(layer))
            for cls in (nnx.BatchNorm, jaxbn.nnx.BatchNorm)
            for layer in [make(cls, 4, axis=1)]
            for y in [layer(X, mask=mask)]
        ]
        (y, ours), (expected, theirs) = results[::-1]
        np.testing.assert_allclose(y[:5], expected[:5], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ours["mean"][...], theirs["mean"][...], rtol=1e-5)

    def test_metadata_and_initialisers(self):
        layer = jaxbn.nnx.BatchNorm(
            3,
            rngs=nnx.Rngs(7),
            scale_init=nnx.initializers.normal(),
            bias_init=nnx.initializers.normal(),
            scale_metadata={"note": "kept"},
        )
        theirs = nnx.BatchNorm(
            3,
            rngs=nnx.Rngs(7),
            scale_init=nnx.initializers.normal(),
            bias_init=nnx.initializers.normal(),
            scale_metadata={"note": "kept"},
        )
        chex.assert_trees_all_equal(nnx.state(layer), nnx.state(theirs))
        assert layer.scale.get_metadata() == theirs.scale.get_metadata()

    def test_half_precision_keeps_float32_statistics(self):
        layer = jaxbn.nnx.BatchNorm(3, dtype=jnp.float16, rngs=nnx.Rngs(0))
        layer.mean[...], layer.var[...] = jnp.full(3, 1000.7), jnp.full(3, 1e5)
        x = (1000.7 + 316 * X).astype(jnp.float16)
        y = layer(x, use_running_average=True)
        assert y.dtype == jnp.float16
        np.testing.assert_allclose(
            np.float32(y), (np.float32(x) - 1000.7) / np.sqrt(1e5), atol=4e-3
        )

    def test_own_promotion_decides_the_dtype(self):
        def to_float16(arrays, dtype):
            assert len(arrays) == 5
            assert dtype is None
            return tuple(None if a is None else a.astype("float16") for a in arrays)

        layer = make(promote_dtype=to_float16)
        assert layer(X).dtype == jnp.float16
        assert layer.mean.dtype == jnp.float32

    def test_train_eval_and_view(self):
        layer = make()
        layer.eval()
        before = nnx.clone(nnx.state(layer, nnx.BatchStat))
        layer(X)
        chex.assert_trees_all_equal(nnx.state(layer, nnx.BatchStat), before)
        seen = nnx.view(layer, use_running_average=False)
        seen(X)  # The view shares the variables.
        assert np.all(layer.mean[...] != before["mean"][...])
        frozen = nnx.view(
            layer, use_running_average=False, update_running_average=False
        )
        before = nnx.clone(nnx.state(layer, nnx.BatchStat))
        scale, bias = np.asarray(layer.scale[...]), np.asarray(layer.bias[...])
        jaxbn.testing.assert_standardized((np.asarray(frozen(X)) - bias) / scale)
        chex.assert_trees_all_equal(nnx.state(layer, nnx.BatchStat), before)
        layer.train()
        assert layer.use_running_average is False

    def test_switch_given_nowhere(self):
        layer = jaxbn.nnx.BatchNorm(3, use_running_average=None, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="`use_running_average` must be given"):
            layer(X)
        assert layer(X, use_running_average=True).shape == X.shape


class TransformTest(chex.TestCase):
    """Each against the same without the transform."""

    def test_jit_and_split(self):
        layer, other = make(), make()
        y = nnx.jit(lambda layer, x: layer(x))(layer, X)
        graph, state = nnx.split(other)

        @jax.jit
        def pure(state, x):
            merged = nnx.merge(graph, state)
            return merged(x), nnx.state(merged)

        expected, state = pure(state, X)
        np.testing.assert_array_equal(y, expected)
        chex.assert_trees_all_equal(nnx.state(layer), state)

    def test_grad_is_that_of_linen(self):
        def loss(layer, x):
            return jnp.sum(jnp.sin(layer(x)))

        grads = nnx.grad(loss)(make(), X)
        variables = to_linen(make())
        module = jaxbn.linen.BatchNorm(use_running_average=False)

        def linen_loss(params):
            given = variables | {"params": params}
            y, _ = module.apply(given, X, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y))

        expected = jax.grad(linen_loss)(variables["params"])
        chex.assert_trees_all_equal(nnx.to_pure_dict(grads), expected)

    def test_remat_updates_once(self):
        layer, other = make(), make()
        grads = nnx.grad(lambda layer: jnp.sum(nnx.remat(call)(layer, X) ** 3))(layer)
        expected = nnx.grad(lambda layer: jnp.sum(call(layer, X) ** 3))(other)
        chex.assert_trees_all_close(grads, expected, rtol=1e-5)
        chex.assert_trees_all_close(nnx.state(layer), nnx.state(other), rtol=1e-6)

    def test_vmap_and_scan_over_layers(self):
        @nnx.vmap(in_axes=0, out_axes=0)
        def make_layers(rngs):
            return jaxbn.nnx.BatchNorm(3, rngs=rngs)

        layers = make_layers(nnx.Rngs(0).split(2))
        y = nnx.vmap(call, in_axes=(0, None))(layers, X)
        one = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(y[1], one(X), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(layers.mean[...][1], one.mean[...], rtol=1e-6)

        layers = make_layers(nnx.Rngs(0).split(2))
        scanned = nnx.scan(call, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(layers, X)
        row = [jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2)]
        np.testing.assert_allclose(scanned, row[1](row[0](X)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            layers.var[...], np.stack([each.var[...] for each in row]), rtol=1e-5
        )

    def test_devices_of_an_explicit_mesh(self):
        mesh = jax.make_mesh((4,), ("d",))
        layer, other = make(), make()
        x = jax.device_put(X, jax.NamedSharding(mesh, jax.P("d")))
        with jax.set_mesh(mesh):
            y = nnx.jit(call)(layer, x)
        np.testing.assert_allclose(y, other(X), rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(nnx.state(layer), nnx.state(other), rtol=1e-6)

    def test_axis_name(self):
        layer, other = make(axis_name="d"), make()
        mapped = nnx.vmap(call, in_axes=(nnx.StateAxes({...: None}), 0), axis_name="d")
        y = mapped(layer, X.reshape(4, 2, 4, 3))
        np.testing.assert_allclose(y.reshape(X.shape), other(X), rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(nnx.state(layer), nnx.state(other), rtol=1e-6)

    def test_optimizer(self):
        layer = make()
        optimizer = nnx.Optimizer(layer, optax.sgd(0.1), wrt=nnx.Param)
        before = layer.scale[...]

        @nnx.jit
        def step(layer, optimizer, x):
            grads = nnx.grad(lambda layer: jnp.sum(layer(x) ** 3))(layer)
            optimizer.update(layer, grads)

        step(layer, optimizer, X)
        assert np.all(layer.scale[...] != before)
        jaxbn.testing.assert_valid_batch_stats(
            {"mean": layer.mean[...], "var": layer.var[...]}
        )

    def test_bridge_to_linen(self):
        module = nnx.bridge.ToLinen(jaxbn.nnx.BatchNorm, args=(3,))
        variables = module.init(jax.random.key(0), X)
        linen = jaxbn.linen.BatchNorm(use_running_average=False)
        expected = linen.init(jax.random.key(0), X)
        shapes = functools.partial(jax.tree.map, jnp.shape)
        assert shapes({**variables}) == shapes({**expected}) | {
            name: shapes(variables[name]) for name in variables if name not in expected
        }
        y, _ = module.apply(variables, X, mutable=["batch_stats"])
        expected, _ = linen.apply(expected, X, mutable=["batch_stats"])
        np.testing.assert_array_equal(y, expected)


def call(layer, x):
    return layer(x)


def to_linen(layer):
    """The variables of a layer as Linen has them."""
    values = nnx.to_pure_dict(nnx.state(layer))
    stats = {name: values.pop(name) for name in ("mean", "var")}
    return {"params": values, "batch_stats": stats}


@pytest.mark.parametrize("bad", [0, -3, 2.5, True, (), (3, 0), "3"])
def test_bad_number_of_features(bad):
    with pytest.raises(ValueError, match="`num_features` must be the size"):
        jaxbn.nnx.BatchNorm(bad, rngs=nnx.Rngs(0))


def test_keys_are_needed_for_parameters_only():
    with pytest.raises(ValueError, match="`rngs` must be given for the bias"):
        jaxbn.nnx.BatchNorm(3, use_scale=False)
    layer = jaxbn.nnx.BatchNorm(3, use_scale=False, use_bias=False)
    jaxbn.testing.assert_standardized(layer(X))


def test_input_of_another_size():
    with pytest.raises(ValueError, match=r"`x` must have .* \(4,\) on axis -1"):
        make(features=4)(X)


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("param_dtype", "estimator"),
    [(jnp.complex64, "ema"), (jnp.float32, "ema"), (jnp.float32, "window")],
)
def test_complex_input(param_dtype, estimator):
    options = {"param_dtype": param_dtype, "estimator": estimator}
    options |= {"momentum": 0.0} if estimator == "ema" else {}
    layer = jaxbn.nnx.BatchNorm(3, **options, rngs=nnx.Rngs(0))
    x = X + 1j * X[::-1]
    y = layer(x, use_running_average=True)  # As Flax's from the first call on.
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-5)
    assert layer.mean.dtype == param_dtype  # Nothing has moved.
    for way in (nnx.jit(call), call):
        way(layer, x)
        np.testing.assert_allclose(layer.mean[...], x.mean((0, 1)), rtol=1e-5)
        assert layer.var.dtype == jnp.float32
    assert np.all(np.imag(layer.mean[...]) != 0)
