import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxbn.testing
from jaxbn.linen import BatchNorm

X = (1 + np.random.default_rng(0).standard_normal((8, 4, 3))).astype(np.float32)


def both(x=X, train=True, mask=None, **options):
    """Returns outputs and updated variables of both layers from the same variables."""
    results = []
    for cls in (nn.BatchNorm, BatchNorm):
        if cls is BatchNorm:
            options = {"unbiased": False} | options
        layer = cls(use_running_average=not train, **options)
        variables = jax.tree.map(
            lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape) / 8,
            nn.BatchNorm(use_running_average=True, axis=layer.axis).init(
                jax.random.key(0), x
            ),
        )
        y, updates = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
        results.append((y, updates))
    return results


class LikeFlaxTest(chex.TestCase):
    def test_fields(self):
        ours = {f.name: f for f in dataclasses.fields(BatchNorm)}
        theirs = {f.name: f for f in dataclasses.fields(nn.BatchNorm)}
        shared = [name for name in ours if name in theirs]
        assert shared == list(theirs)
        for name, field in theirs.items():
            if name != "use_fast_variance":  # The fast formula only on request.
                assert field.default == ours[name].default, name
        assert all(ours[name].kw_only for name in ours if name not in theirs)

    @parameterized.product(
        train=(True, False),
        options=(
            {},
            {"momentum": 0.5, "epsilon": 0.1},
            {"axis": 1},
            {"axis": (0, -1)},
            {"use_scale": False},
            {"use_bias": False, "use_scale": False},
            {"use_fast_variance": True},
        ),
    )
    def test_same_numbers(self, train, options):
        flax, ours = both(train=train, **options)
        chex.assert_trees_all_close(ours, flax, rtol=1e-5, atol=1e-6)

    def test_same_numbers_under_a_mask(self):
        mask = np.arange(8)[:, None, None] < 5
        flax, ours = both(mask=mask)
        chex.assert_trees_all_close(ours, flax, rtol=1e-5, atol=1e-6)
        _, ours_float = both(mask=mask.astype(np.float32))
        chex.assert_trees_all_equal(ours_float, ours)

    @parameterized.product(
        x_dtype=(jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32),
        dtype=(None, jnp.float32, jnp.bfloat16),
        train=(True, False),
    )
    def test_same_dtypes(self, x_dtype, dtype, train):
        flax, ours = both(jnp.asarray(X, x_dtype), train=train, dtype=dtype)
        chex.assert_trees_all_equal_dtypes(ours, flax)
        atol = 0.05 if jnp.bfloat16 in (x_dtype, dtype) else 5e-3
        chex.assert_trees_all_close(
            *(jax.tree.map(np.float32, result) for result in (ours, flax)), atol=atol
        )

    @parameterized.parameters({}, {"axis": (1, 2)}, {"param_dtype": jnp.float16})
    def test_same_variables(self, **options):
        options |= {"scale_init": nn.initializers.normal(), "use_running_average": True}
        variables = [
            cls(**options).init(jax.random.key(0), X)
            for cls in (nn.BatchNorm, BatchNorm)
        ]
        chex.assert_trees_all_equal(*variables)
        chex.assert_trees_all_equal_shapes_and_dtypes(*variables)

    def test_checkpoint_of_a_whole_model_loads_either_way(self):
        class Net(nn.Module):
            norm: type

            @nn.compact
            def __call__(self, x, train):
                x = self.norm(name="bn")(nn.Dense(5)(x), use_running_average=not train)
                return nn.Dense(2)(nn.relu(x))

        nets = Net(nn.BatchNorm), Net(BatchNorm)
        for trained, serving in (nets, nets[::-1]):
            variables = trained.init(jax.random.key(0), X, train=True)
            _, updates = trained.apply(
                variables, X, train=True, mutable=["batch_stats"]
            )
            variables = {**variables, **updates}
            chex.assert_trees_all_close(
                serving.apply(variables, X, train=False),
                trained.apply(variables, X, train=False),
                rtol=1e-6,
                atol=1e-6,
            )


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(BatchNorm(use_running_average=False)(nn.Dense(3)(x))), None


class LayerTest(chex.TestCase):
    def test_running_variance_is_unbiased_by_default(self):
        layer = BatchNorm(use_running_average=False, momentum=0.0)
        variables = layer.init(jax.random.key(0), X)
        _, updates = layer.apply(variables, X, mutable=["batch_stats"])
        expected = X.reshape(-1, 3).var(0, ddof=1)
        np.testing.assert_allclose(updates["batch_stats"]["var"], expected, rtol=1e-5)

    def test_half_precision_inference_keeps_float32_statistics(self):
        layer = BatchNorm(use_running_average=True, dtype=jnp.float16)
        variables = layer.init(jax.random.key(0), X)
        stats = {"mean": jnp.full(3, 1000.7), "var": jnp.full(3, 1e5)}
        x = (1000.7 + 316 * X).astype(jnp.float16)
        y = layer.apply({**variables, "batch_stats": stats}, x)
        np.testing.assert_allclose(
            np.float32(y), (np.float32(x) - 1000.7) / np.sqrt(1e5), atol=4e-3
        )

    def test_complex_state_keeps_its_dtype(self):
        layer = BatchNorm(use_running_average=False)
        x = X + 1j * X[::-1]
        variables = layer.init(jax.random.key(0), x)
        _, updates = layer.apply(variables, x, mutable=["batch_stats"])
        chex.assert_trees_all_equal_dtypes(
            updates["batch_stats"], variables["batch_stats"]
        )
        assert np.all(np.imag(updates["batch_stats"]["mean"]) != 0)

    def test_init_needs_no_axis_and_updates_nothing(self):
        layer = BatchNorm(
            use_running_average=False, axis_name="d", axis_index_groups=[[0], [1]]
        )
        variables = layer.init(jax.random.key(0), X[:1, :1])  # And does not warn.
        chex.assert_trees_all_equal(
            variables["batch_stats"], {"mean": jnp.zeros(3), "var": jnp.ones(3)}
        )

    def test_reused_layer_initialises_without_its_axis(self):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                layer = BatchNorm(use_running_average=False, axis_name="d")
                return layer(layer(x))

        variables = Net().init(jax.random.key(0), X)
        chex.assert_shape(variables["params"]["BatchNorm_0"]["scale"], (3,))

    @parameterized.product(normalise=(True, False), update=(True, False, None))
    def test_normalising_and_updating_are_independent(self, normalise, update):
        layer = BatchNorm(momentum=0.5)
        variables = layer.init(jax.random.key(0), X, use_running_average=True)
        for from_constructor in (False, True):
            options = {"update_running_average": update}
            called = layer.clone(**options) if from_constructor else layer
            y, updates = called.apply(
                variables,
                X,
                use_running_average=normalise,
                mutable=["batch_stats"],
                **({} if from_constructor else options),
            )
            moved = np.any(np.asarray(updates["batch_stats"]["mean"]) != 0)
            assert moved == ((not normalise) if update is None else update)
            mean = np.asarray(y).reshape(-1, 3).mean(0)
            np.testing.assert_allclose(
                mean, X.reshape(-1, 3).mean(0) if normalise else 0, atol=1e-4
            )

    def test_frozen_statistics_need_no_mutable_collection(self):
        layer = BatchNorm(use_running_average=False, update_running_average=False)
        variables = layer.init(jax.random.key(0), X)
        jaxbn.testing.assert_standardized(layer.apply(variables, X))

    def test_scan_over_layers_with_remat_equals_layers_in_a_row(self):
        stacked = nn.scan(
            nn.remat(Block),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=4,
        )()
        variables = stacked.init(jax.random.key(0), X, None)

        @jax.jit
        def scanned(variables, x):
            (y, _), updates = stacked.apply(variables, x, None, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), updates["batch_stats"]

        @jax.jit
        def in_a_row(variables, x):
            updates = []
            for i in range(4):
                layer = jax.tree.map(lambda leaf, i=i: leaf[i], variables)
                (x, _), update = Block().apply(layer, x, None, mutable=["batch_stats"])
                updates.append(update["batch_stats"])
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates)
            return jnp.sum(jnp.sin(x)), stacked

        results = [
            jax.value_and_grad(loss, (0, 1), has_aux=True)(variables, X)
            for loss in (scanned, in_a_row)
        ]
        chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)

    def test_vmap_over_layers_equals_each_layer(self):
        mapped = nn.vmap(
            Block,
            in_axes=(0, None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
        )()
        x = jnp.stack([X, 2 * X[::-1] + 1])
        variables = mapped.init(jax.random.key(0), x, None)
        (y, _), updates = mapped.apply(variables, x, None, mutable=["batch_stats"])
        for i in range(2):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], variables)
            (expected, _), update = Block().apply(
                layer, x[i], None, mutable=["batch_stats"]
            )
            actual = y[i], jax.tree.map(lambda leaf, i=i: leaf[i], updates)
            chex.assert_trees_all_close(
                actual, (expected, update), rtol=1e-5, atol=1e-6
            )


class GroupTest(chex.TestCase):
    def test_statistics_of_groups_are_those_of_all(self):
        layer = BatchNorm(False, group_size=2, momentum=0.0)
        variables = layer.init(jax.random.key(0), X)
        _, updates = layer.apply(variables, X, mutable=["batch_stats"])
        _, expected = jaxbn.batch_norm_train(
            X, None, None, jaxbn.init_batch_stats(3), group_size=2, momentum=0.0
        )
        moved = jaxbn.BatchStats(**updates["batch_stats"])
        chex.assert_trees_all_equal(moved, expected)
        of_all = X.reshape(-1, 3).astype(np.float64).var(0, ddof=1)
        var = updates["batch_stats"]["var"]
        np.testing.assert_allclose(var, of_all, rtol=1e-5)


class ToolsOfFlaxTest(chex.TestCase):
    """Tests that Flax's tools do not show helpers of the layer as methods."""

    def setUp(self):
        super().setUp()
        self.net = nn.Sequential([BatchNorm(False), BatchNorm(False)])
        self.variables = self.net.init(jax.random.key(0), X)

    def test_tabulate(self):
        table = self.net.tabulate(
            jax.random.key(0), X, show_repeated=True, compute_flops=True
        )
        assert table.count("BatchNorm") >= 2

    def test_capture_intermediates(self):
        apply = jax.jit(
            lambda v: self.net.apply(
                v, X, mutable=["batch_stats", "intermediates"],
                capture_intermediates=lambda module, name: True,
            )[1]["intermediates"]
        )  # fmt: skip
        captured = apply(self.variables)
        assert captured["layers_0"]["__call__"][0].shape == X.shape
        assert set(captured["layers_0"]) == {"__call__"}

    def test_intercept_methods(self):
        seen = []

        def interceptor(next_function, args, kwargs, context):
            if isinstance(context.module, BatchNorm):
                seen.append(context.method_name)
            return next_function(*args, **kwargs)

        with nn.intercept_methods(interceptor):
            self.net.apply(self.variables, X, mutable=["batch_stats"])
        assert seen == ["__call__", "__call__"]


class ErrorTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"momentum": 9.0}, r"`momentum` .* \[0, 1\], got 9.0"),
        ({"momentum": -0.1}, r"`momentum` .* got -0.1"),
        ({"epsilon": -1.0}, r"`epsilon` .* must be >= 0, got -1.0"),
        ({"axis": 7}, r"`axis` must lie in \[-3, 3\)"),
        ({"axis": -4}, r"`axis` must lie in"),
        ({"axis": (1, 1)}, r"`axis` must name each axis once"),
        ({"variance": "two"}, r"`variance` must be one of .*got 'two'"),
    )
    def test_options(self, options, message):
        for inference in (False, True):
            layer = BatchNorm(use_running_average=inference, **options)
            with pytest.raises(ValueError, match=message):
                layer.init(jax.random.key(0), X)

    def test_number_of_channels_in_the_place_of_a_switch(self):
        message = (
            "`use_running_average` must be True or .* takes the number of channels"
        )
        with pytest.raises(TypeError, match=message):
            BatchNorm(64).init(jax.random.key(0), X)

    def test_what_is_as_good_as_a_switch(self):
        layer = BatchNorm()
        variables = layer.init(jax.random.key(0), X, use_running_average=True)
        expected = layer.apply(variables, X, use_running_average=True)
        for value in (1, np.bool_(True), jnp.array(True)):
            actual = layer.apply(variables, X, use_running_average=value)
            chex.assert_trees_all_equal(actual, expected)

    def test_traced_switch(self):
        layer = BatchNorm()
        variables = layer.init(jax.random.key(0), X, use_running_average=True)
        with pytest.raises(TypeError, match=r"must be known while tracing.*static"):
            jax.jit(lambda v, t: layer.apply(v, X, use_running_average=t))(
                variables, True
            )

    @parameterized.parameters(True, False)
    def test_channels(self, train):
        layer = BatchNorm(use_running_average=not train)
        variables = layer.init(jax.random.key(0), X)
        with pytest.raises(ValueError, match=r"`scale` must .* \(2,\) .* got \(3,\)"):
            layer.apply(variables, X[..., :2], mutable=["batch_stats"])
        layer = layer.clone(use_bias=False, use_scale=False)
        stats = {"batch_stats": variables["batch_stats"]}
        with pytest.raises(ValueError, match=r"`batch_stats.mean` .* got \(3,\)"):
            layer.apply(stats, X[..., :2], mutable=["batch_stats"])

    def test_mask_and_names(self):
        layer = BatchNorm(use_running_average=False)
        variables = layer.init(jax.random.key(0), X)
        with pytest.raises(ValueError, match="`mask` must broadcast"):
            layer.apply(variables, X, mask=np.ones(8, bool), mutable=["batch_stats"])
        for options, message in (
            ({"axis_name": "d"}, "`axis_name` must be bound"),
            ({"axis_index_groups": [[0]]}, "`axis_index_groups` needs"),
        ):
            with pytest.raises(ValueError, match=message):
                layer.clone(**options).apply(variables, X, mutable=["batch_stats"])
