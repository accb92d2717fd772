"""A batch in parts: the gradient of the whole, one update of the running statistics."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbn import training
from jaxbn.linen import BatchNorm
from tests.small_net import BATCH, Net, loss_fn, make_state

PADDED = BATCH | {"mask": np.arange(12) < 7}


def step(batch, net=None, tx=None, **options):
    make = training.make_train_step(loss_fn, **options)
    return make(make_state(net, tx), batch)


@pytest.mark.parametrize("batch", [BATCH, PADDED], ids=["whole", "masked"])
@pytest.mark.parametrize(
    "tx",
    [
        pytest.param(optax.sgd(0.1), id="sgd"),
        pytest.param(optax.lbfgs(1.0), id="lbfgs", marks=pytest.mark.exhaustive),
    ],
)
def test_without_normalisation_parts_equal_the_whole(batch, tx):
    net = Net(batch_norm=False)
    expected, metrics = step(batch, net, tx)
    actual, other_metrics = step(batch, net, tx, micro_batches=3)
    chex.assert_trees_all_close(actual.params, expected.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(other_metrics, metrics, rtol=1e-5)


@pytest.mark.parametrize("batch", [BATCH, PADDED], ids=["whole", "masked"])
def test_running_statistics_move_once_by_the_whole(batch):
    """The input of the only normalisation does not depend on the parts."""
    expected, _ = step(batch)
    for parts in (2, 4):
        state, metrics = step(batch, micro_batches=parts)
        chex.assert_trees_all_close(
            state.batch_stats, expected.batch_stats, rtol=1e-5, atol=1e-6
        )
        assert int(metrics["loss"].count) == (7 if "mask" in batch else 12)


@pytest.mark.exhaustive
def test_gradient_is_the_mean_of_those_of_the_parts():
    params = make_state().params
    parts = [{k: v[i::3] for k, v in BATCH.items()} for i in range(3)]
    grads = [jax.tree.map(jnp.subtract, params, step(part)[0].params) for part in parts]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *grads)
    state, _ = step(BATCH, micro_batches=3)
    actual = jax.tree.map(jnp.subtract, params, state.params)
    chex.assert_trees_all_close(actual, mean, rtol=1e-4, atol=1e-6)


def test_parts_drop_out_different_units():
    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x, train, mask=None):
            x = BatchNorm()(x, use_running_average=not train)
            scale = self.param("scale", nn.initializers.ones, ())
            return nn.Dropout(0.5, deterministic=not train)(scale * jnp.ones_like(x))

    def kept(model, batch, train):
        return {"loss": jnp.sum(model(batch["x"], train), -1)}

    net, batch = Drop(), {"x": BATCH["x"]}
    variables = net.init(jax.random.key(0), batch["x"], train=False)
    losses = []
    for parts in (1, 2):
        half = {"x": batch["x"][:6]} if parts == 1 else batch
        state = training.TrainState.create(net.apply, variables, optax.sgd(0.1))
        make = training.make_train_step(kept, micro_batches=parts)
        losses.append(float(make(state, half)[1]["loss"].total))
    assert losses[1] != 2 * losses[0]


def test_over_devices():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    net = Net(batch_norm=False)
    make = training.make_train_step(loss_fn, axis_name="d", micro_batches=3)
    P = jax.P
    mapped = jax.shard_map(
        make, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P(), P())
    )
    state, metrics = jax.jit(mapped)(make_state(net), BATCH)
    expected, expected_metrics = step(BATCH, net)
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5)


def test_multi_steps_of_optax_moves_the_statistics_in_each_call():
    """Each call of `MultiSteps` is a step; `micro_batches` splits a call's batch."""
    tx = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    state, make = make_state(tx=tx), training.make_train_step(loss_fn, micro_batches=3)
    before = jax.tree.map(np.array, (state.params, state.batch_stats))
    state, _ = make(state, BATCH)
    chex.assert_trees_all_equal(state.params, before[0])
    assert np.any(
        state.batch_stats["BatchNorm_0"]["mean"] != before[1]["BatchNorm_0"]["mean"]
    )
    state, _ = make(state, BATCH)
    assert np.any(state.params["Dense_0"]["kernel"] != before[0]["Dense_0"]["kernel"])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_gradients_are_added_up_in_float32(dtype):
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(1, param_dtype=dtype, dtype=dtype)(x)

    def loss(model, batch, train):
        return {"loss": 40 * model(batch["deep"]["x"], train)[:, 0]}

    net, batch = Half(), {"deep": {"x": np.ones((4096, 3), np.float32)}}
    variables = net.init(jax.random.key(0), np.ones((1, 3)), train=False)
    before = variables["params"]["Dense_0"]["bias"]
    state = training.TrainState.create(net.apply, variables, optax.sgd(1.0))
    state, _ = training.make_train_step(loss, micro_batches=1024)(state, batch)
    bias = state.params["Dense_0"]["bias"]
    assert bias.dtype == dtype
    # A sum of 1024 parts would overflow, or stop at 256 of them.
    np.testing.assert_allclose(np.float32(before - bias), 40, rtol=1e-2)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_each_device_has_some_of_every_part(kind):
    kinds = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((2,), ("d",), axis_types=kinds)
    expected, _ = step({"x": BATCH["x"], "y": BATCH["y"]}, micro_batches=3)

    def mean_loss_fn(model, batch, train):
        logits = model(batch["x"], train=train)
        labels = jax.nn.one_hot(batch["y"], 3)
        return {"loss": optax.safe_softmax_cross_entropy(logits, labels)}

    with jax.set_mesh(mesh):
        split = jax.NamedSharding(mesh, jax.P("d"))
        batch = {name: jax.device_put(BATCH[name], split) for name in ("x", "y")}
        make = training.make_train_step(mean_loss_fn, micro_batches=3)
        state, _ = make(make_state(), batch)
    chex.assert_trees_all_close(
        jax.tree.map(np.asarray, state.batch_stats),
        expected.batch_stats,
        rtol=1e-5,
        atol=1e-6,
    )
    chex.assert_trees_all_close(
        jax.tree.map(np.asarray, state.params), expected.params, rtol=1e-4, atol=1e-5
    )


def test_layers_of_flax_are_told():
    class Theirs(nn.Module):
        @nn.compact
        def __call__(self, x, train, mask=None):
            return nn.BatchNorm(name="theirs")(x, use_running_average=not train)

    with pytest.raises(ValueError, match=r"layer 'theirs' could not be collected"):
        step(BATCH, Theirs(), micro_batches=2)


def test_errors():
    with pytest.raises(ValueError, match="`micro_batches` must be at least 1, got 0"):
        training.make_train_step(loss_fn, micro_batches=0)
    with pytest.raises(
        ValueError, match=r"`batch.*'x'.*` .* multiple of 5 .*\(12, 4\)"
    ):
        step(BATCH, micro_batches=5)
