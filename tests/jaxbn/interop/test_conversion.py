"""Tests names, layouts and the messages about weights that do not fit."""

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import jaxbn.linen
import jaxbn.nnx
from jaxbn import interop

RNG = np.random.default_rng(0)
BN = {name: RNG.standard_normal(3) for name in ("weight", "bias", "running_mean")}
BN["running_var"] = RNG.random(3)
IMAGES = np.ones((2, 4, 4, 6), np.float32)
STATISTICS = {"moving_mean", "moving_variance"}  # Keras's.


def bn_template():
    layer = jaxbn.linen.BatchNorm(use_running_average=True)
    net = nn.Sequential([layer])
    return net.init(jax.random.key(0), np.ones((2, 3)))


def prefixed(prefix, weights):
    return {f"{prefix}.{name}": value for name, value in weights.items()}


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_kernels_of_every_rank(rank):
    """PyTorch has the outputs first, [O, I, ...]; here they are last, [..., I, O]."""
    shape = (*range(5, 5 + rank), 2, 4)
    kernel = RNG.standard_normal(shape).astype(np.float32)
    tree = {"params": {"layer": {"kernel": kernel, "bias": np.arange(4.0)}}}
    weights = interop.to_torch(tree, {"layer": "net.0"})
    assert weights["net.0.weight"].shape == (4, 2, *shape[:-2])
    np.testing.assert_array_equal(weights["net.0.weight"][3, 1], kernel[..., 1, 3])
    back = interop.from_torch(weights, jax.tree.map(np.zeros_like, tree), {"layer": "net.0"})  # fmt: skip # noqa: E501
    chex.assert_trees_all_equal(back, tree)


def test_names_without_a_prefix_and_embeddings():
    tree = {"params": {"table": {"embedding": RNG.standard_normal((7, 2))}}}
    weights = interop.to_torch(tree, {"table": ""})
    assert set(weights) == {"weight"}
    chex.assert_trees_all_equal(interop.from_torch(weights, tree, {"table": ""}), tree)


def test_tree_keeps_structure_dtypes_and_what_has_no_counterpart():
    layer = jaxbn.linen.BatchNorm(use_running_average=True, estimator="window")
    template = layer.init(jax.random.key(0), np.ones((2, 3)))
    weights = prefixed("bn", BN) | {"bn.num_batches_tracked": np.array(7)}
    made = interop.from_torch(weights, {"params": {"bn": template["params"]}, "batch_stats": {"bn": template["batch_stats"]}}, {"bn": "bn"})  # fmt: skip # noqa: E501
    stats = made["batch_stats"]["bn"]
    np.testing.assert_allclose(stats["mean"], BN["running_mean"], rtol=1e-6)
    assert stats["mean"].dtype == np.float32
    np.testing.assert_array_equal(stats["weight"], 0)


def test_every_difference_is_listed():
    weights = prefixed("bn", BN) | {"fc.weight": np.ones((2, 2))}
    del weights["bn.bias"]
    weights["bn.weight"] = np.ones(4)
    names = {"layers_0": "bn", "layers_9": "x"}
    with pytest.raises(ValueError, match="The weights do not fit") as error:
        interop.from_torch(weights, bn_template(), names)
    said = str(error.value)
    for problem in (
        "`names` has 'layers_9', which is no module of the tree",
        "`weights` has no 'bn.bias'",
        "'bn.weight' has the shape (4,), which does not fit (3,) of layers_0/scale",
        "'fc.weight' of `weights` is not used",
    ):
        assert problem in said
    assert said.count("\n") == 4
    with pytest.raises(ValueError, match="'layers_0' of the tree has no name"):
        interop.to_torch(bn_template(), {})


def test_a_transposed_matrix_of_equal_size_is_refused():
    tree = {"params": {"fc": {"kernel": np.zeros((2, 6))}}}
    with pytest.raises(ValueError, match="does not fit"):
        interop.from_torch({"fc.weight": np.ones((4, 3))}, tree, {"fc": "fc"})


def test_nnx_and_linen_trees_take_the_same_weights():
    layer = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state({"bn": layer}))
    made = interop.from_torch(prefixed("m", BN), state, {"bn": "m"})
    linen = interop.from_torch(prefixed("m", BN), bn_template(), {"layers_0": "m"})
    np.testing.assert_array_equal(
        made["bn"]["var"], linen["batch_stats"]["layers_0"]["var"]
    )
    back = interop.to_torch(made, {"bn": "m"})
    for name, value in BN.items():
        np.testing.assert_allclose(back[f"m.{name}"], value, rtol=1e-6)
    assert back["m.num_batches_tracked"] == 0


def test_random_streams_boxes_and_arrays_of_their_own():
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.fc = nnx.Linear(3, 2, rngs=rngs)

    state = nnx.state(Model())
    weights = interop.to_torch(nnx.to_pure_dict(state), {"fc": "fc"})
    assert set(weights) == {"fc.weight", "fc.bias"}
    assert all(value.flags.writeable for value in weights.values())
    chex.assert_trees_all_equal(weights, interop.to_torch(state, {"fc": "fc"}))
    boxed = nn.Dense(
        2, kernel_init=nn.with_partitioning(nn.initializers.normal(), (None, "model"))
    ).init(jax.random.key(0), np.ones((1, 3)))
    tree = {"params": {"fc": boxed["params"]}}
    made = interop.from_torch(weights, tree, {"fc": "fc"})
    np.testing.assert_array_equal(made["params"]["fc"]["bias"], weights["fc.bias"])
    chex.assert_trees_all_equal_structs(made, tree)


def test_half_precision_leaves_as_float32():
    tree = {"params": {"fc": {"bias": jax.numpy.ones(2, "bfloat16")}}}
    assert interop.to_torch(tree, {"fc": "fc"})["fc.bias"].dtype == np.float32


def test_what_has_no_counterpart_is_told():
    tree = {"params": {"relu": {"negative_slope": np.ones(())}}}
    with pytest.raises(ValueError, match="negative_slope of the tree has no count"):
        interop.to_torch(tree, {"relu": "0"})


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.LayerNorm(), {"gamma", "beta"}),
        (nn.LayerNorm(use_scale=False), {"beta"}),
        (nn.LayerNorm(use_bias=False), {"gamma"}),
        (nn.GroupNorm(2), {"gamma", "beta"}),
        (nn.GroupNorm(2, use_scale=False), {"beta"}),
        (nn.InstanceNorm(use_scale=False), {"beta"}),
        (nn.RMSNorm(), {"gamma"}),
        (jaxbn.linen.BatchNorm(True), {"gamma", "beta"} | STATISTICS),
        (jaxbn.linen.BatchNorm(True, use_scale=False), {"beta"} | STATISTICS),
        (jaxbn.linen.BatchNorm(True, use_scale=False, use_bias=False), STATISTICS),
        (nn.Dense(2), {"kernel", "bias"}),
        (nn.Dense(2, use_bias=False), {"kernel"}),
        (nn.Conv(2, (3, 3)), {"kernel", "bias"}),
        (nn.Embed(3, 2), {"embeddings"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_every_layer_of_flax_is_called(module, expected):
    """The variables are the layer's own, because a made-up tree could be wrong."""
    x = np.zeros(2, int) if isinstance(module, nn.Embed) else IMAGES
    variables = module.init(jax.random.key(0), x)
    tree = {name: {"m": part} for name, part in variables.items()}
    weights = interop.to_keras(tree, {"m": "m"})
    assert set(weights) == {f"m/{name}" for name in expected}
    chex.assert_trees_all_equal(interop.from_keras(weights, tree, {"m": "m"}), tree)


def test_a_name_that_only_some_modules_use():
    """RMSNormalization of Keras has a `scale`, and hk.Bias a `b`."""
    tree = {"params": {"m": {"scale": np.zeros(3)}}}
    made = interop.from_keras({"m/scale": np.arange(3.0)}, tree, {"m": "m"})
    np.testing.assert_array_equal(made["params"]["m"]["scale"], np.arange(3.0))
    with pytest.raises(ValueError, match="`weights` has no 'm/gamma'"):
        interop.from_keras({}, tree, {"m": "m"})
    tree = {"params": {"m": {"bias": np.zeros(3)}}}
    made = interop.from_haiku({"m": {"b": np.arange(3.0)}}, {}, tree, {"m": "m"})
    np.testing.assert_array_equal(made["params"]["m"]["bias"], np.arange(3.0))


def test_two_modules_of_one_name():
    """Tied weights are read into both places; different values cannot be written."""
    tree = {"params": {name: {"embedding": np.zeros((3, 2))} for name in "ab"}}
    names = {"a": "table", "b": "table"}
    weights = {"table.weight": np.arange(6.0).reshape(3, 2)}
    made = interop.from_torch(weights, tree, names)
    chex.assert_trees_all_equal(made["params"]["a"], made["params"]["b"])
    chex.assert_trees_all_equal(interop.to_torch(made, names), weights)
    made["params"]["b"]["embedding"] = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"b/embedding would be 'table.weight', and"):
        interop.to_torch(made, names)
