"""Checkpoints of models with Flax's layers load into those with ours, and back."""

import functools
from typing import Any

import chex
import flax.linen as nn
import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxbn.linen
import jaxbn.nnx

X = (1 + np.random.default_rng(0).standard_normal((8, 4))).astype(np.float32)
KEY = jax.random.key(0)
# 8 devices: channels are split over two, and every one of these is on four.
MESH = jax.make_mesh((4, 2), ("d", "m"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
SPLIT = jax.NamedSharding(MESH, jax.P("m"))
WHOLE = jax.NamedSharding(MESH, jax.P())


class LinenNet(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(6)(x)
        return nn.tanh(self.norm(name="bn")(x, use_running_average=not train))


class NnxNet(nnx.Module):
    def __init__(self, norm, rngs):
        self.dense = nnx.Linear(4, 6, rngs=rngs)
        self.bn = norm(6, rngs=rngs)

    def __call__(self, x):
        return nnx.tanh(self.bn(self.dense(x)))


class OfLinen:
    """A model as the tests need it: made, trained a little, its tree, its output."""

    norms = nn.BatchNorm, jaxbn.linen.BatchNorm

    def __init__(self, norm):
        self.net = LinenNet(functools.partial(norm, momentum=0.5))

    def new(self, seed):
        variables = self.net.init(jax.random.key(seed), X, train=False)
        return {**variables}

    def trained(self, seed=1):
        variables = self.new(seed)
        _, update = self.net.apply(variables, X, train=True, mutable=["batch_stats"])
        return {**variables, **update}

    def output(self, tree):
        return self.net.apply(tree, X, train=False)


class OfNnx:
    norms = nnx.BatchNorm, jaxbn.nnx.BatchNorm

    def __init__(self, norm):
        self.norm = functools.partial(norm, momentum=0.5)

    def model(self, seed):
        return NnxNet(self.norm, nnx.Rngs(seed))

    def new(self, seed):
        return nnx.to_pure_dict(nnx.state(self.model(seed)))

    def trained(self, seed=1):
        model = self.model(seed)
        model(X)
        return nnx.to_pure_dict(nnx.state(model))

    def output(self, tree):
        model = self.model(3)
        state = nnx.state(model)
        nnx.replace_by_pure_dict(state, tree)
        nnx.update(model, state)
        model.eval()
        return model(X)


class OfNnxState(OfNnx):
    """NNX's own tree, of variables instead of arrays."""

    def new(self, seed):
        return nnx.state(self.model(seed))

    def trained(self, seed=1):
        model = self.model(seed)
        model(X)
        return nnx.state(model)

    def output(self, tree):
        model = self.model(3)
        nnx.update(model, tree)
        model.eval()
        return model(X)


def through_bytes(tree, target, path):
    del path
    return flax.serialization.from_bytes(target, flax.serialization.to_bytes(tree))


def through_msgpack(tree, target, path):
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    restored = flax.serialization.msgpack_restore(path.read_bytes())
    chex.assert_trees_all_equal_structs(restored, target)
    return restored


def through_orbax(tree, target, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        return checkpointer.restore(path, abstract)


def through_orbax_pytree(tree, target, path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        return checkpointer.restore(path, item=target, restore_args=arguments)


WAYS = through_bytes, through_msgpack, through_orbax, through_orbax_pytree


def name_of(value):
    return value.__name__


def exchange(kind, way, to_ours, path, place=lambda tree: tree):
    """Saved by one model, loaded into the other; compared with what was saved."""
    norms = kind.norms if to_ours else kind.norms[::-1]
    source, goal = map(kind, norms)
    saved, target = place(source.trained()), place(goal.new(seed=2))
    chex.assert_trees_all_equal_shapes_and_dtypes(saved, target)
    restored = way(saved, target, path)
    chex.assert_trees_all_equal_structs(restored, saved)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, saved)
    chex.assert_trees_all_equal(restored, saved)
    # Inference is the same formula in both: a product of rounded factors.
    np.testing.assert_allclose(
        goal.output(restored), source.output(saved), rtol=1e-5, atol=1e-6
    )
    return saved, restored


@pytest.mark.parametrize("to_ours", [True, False], ids=["to ours", "to Flax's"])
@pytest.mark.parametrize("way", WAYS, ids=name_of)
@pytest.mark.parametrize("kind", [OfLinen, OfNnx], ids=name_of)
def test_either_way(kind, way, to_ours, tmp_path):
    exchange(kind, way, to_ours, tmp_path / "saved")


@pytest.mark.parametrize("to_ours", [True, False], ids=["to ours", "to Flax's"])
@pytest.mark.parametrize("way", [through_orbax, through_orbax_pytree], ids=name_of)
def test_variables_of_nnx_either_way(way, to_ours, tmp_path):
    exchange(OfNnxState, way, to_ours, tmp_path / "saved")


@pytest.mark.first_case
@pytest.mark.parametrize("to_ours", [True, False], ids=["to ours", "to Flax's"])
@pytest.mark.parametrize("way", [through_orbax, through_orbax_pytree], ids=name_of)
@pytest.mark.parametrize("kind", [OfLinen, OfNnx, OfNnxState], ids=name_of)
def test_arrays_on_many_devices_either_way(kind, way, to_ours, tmp_path):
    def place(tree):
        def put(leaf):
            spec = (None, "m") if leaf.ndim == 2 else ("m",)
            return jax.device_put(leaf, jax.NamedSharding(MESH, jax.P(*spec)))

        return jax.tree.map(put, tree)

    saved, restored = exchange(kind, way, to_ours, tmp_path / "saved", place)
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(restored), strict=True):
        assert a.sharding == b.sharding
        assert len(b.sharding.device_set) == 8
        assert not b.sharding.is_fully_replicated


def test_restored_to_other_devices_than_saved_from(tmp_path):
    source, goal = map(OfLinen, OfLinen.norms)
    saved = source.trained()  # Of one device.
    target = jax.device_put(goal.new(seed=2), WHOLE)
    target["batch_stats"] = jax.device_put(target["batch_stats"], SPLIT)
    restored = through_orbax(saved, target, tmp_path / "saved")
    chex.assert_trees_all_equal(restored, saved)
    for leaf in jax.tree.leaves(restored["batch_stats"]):
        assert leaf.sharding == SPLIT
    np.testing.assert_allclose(
        goal.output(restored), source.output(saved), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("boxed", [False, True])
def test_trees_of_a_layer_are_those_of_flax(boxed):
    """They agree in type, name, shape and dtype, whichever parameters are left out."""
    for use_scale in (True, False):
        for use_bias in (True, False):
            options = {"use_scale": use_scale, "use_bias": use_bias}
            init = nn.initializers.ones
            if boxed:
                init = nn.with_partitioning(init, ("m",))
            flax_tree, our_tree = (
                norm(True, scale_init=init, **options).init(KEY, X)
                for norm in OfLinen.norms
            )
            chex.assert_trees_all_equal_structs(our_tree, flax_tree)
            chex.assert_trees_all_equal_shapes_and_dtypes(our_tree, flax_tree)
            flax_tree, our_tree = (
                nnx.state(
                    norm(
                        4,
                        rngs=nnx.Rngs(0),
                        scale_metadata={"note": "m"} if boxed else {},
                        **options,
                    )
                )
                for norm in OfNnx.norms
            )
            chex.assert_trees_all_equal_structs(our_tree, flax_tree)
            chex.assert_trees_all_equal_shapes_and_dtypes(our_tree, flax_tree)


def test_linen_into_nnx_and_back():
    linen, in_nnx = OfLinen(nn.BatchNorm), OfNnx(jaxbn.nnx.BatchNorm)
    tree = linen.trained()
    layer = {**tree["params"]["bn"], **tree["batch_stats"]["bn"]}
    moved = {"dense": tree["params"]["Dense_0"], "bn": layer}
    y = in_nnx.output(moved)
    np.testing.assert_allclose(y, linen.output(tree), rtol=1e-5, atol=1e-6)
    back = {
        "params": {
            "Dense_0": moved["dense"],
            "bn": {name: moved["bn"][name] for name in ("scale", "bias")},
        },
        "batch_stats": {"bn": {name: moved["bn"][name] for name in ("mean", "var")}},
    }
    ours = OfLinen(jaxbn.linen.BatchNorm)
    np.testing.assert_array_equal(ours.output(back), y)


def test_training_goes_on_where_it_stopped(tmp_path):
    """A step after a checkpoint is the step without one, bit for bit."""
    ours = OfLinen(jaxbn.linen.BatchNorm)
    saved = ours.trained()
    restored = through_orbax(saved, ours.new(seed=2), tmp_path / "saved")
    steps = [
        ours.net.apply(tree, X + 1, train=True, mutable=["batch_stats"])
        for tree in (saved, restored)
    ]
    chex.assert_trees_all_equal(*steps)
