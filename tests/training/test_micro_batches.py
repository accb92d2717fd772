"""A batch in parts: the gradient of the whole, one update of the running statistics."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import training
from tests import small_net
from tests.training import both_apis
from tests.training.both_apis import (
    APIS,
    BATCH,
    BATCHES,
    Linen,
    Nnx,
    loss_fn,
)


def after_a_step(api, batch, micro_batches=1, **options):
    made = api(**options)
    return made, made.take(api.train(loss_fn, micro_batches=micro_batches), batch)


@pytest.mark.first_case
@APIS
@BATCHES
def test_without_normalisation_parts_equal_the_whole(api, batch):
    expected, metrics = after_a_step(api, batch, batch_norm=False)
    actual, others = after_a_step(api, batch, 4, batch_norm=False)
    chex.assert_trees_all_close(actual.params, expected.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(others, metrics, rtol=1e-5)


@pytest.mark.first_case
@APIS
@BATCHES
def test_running_statistics_move_once_by_the_whole(api, batch):
    """The input of the only normalisation does not depend on the parts."""
    expected, _ = after_a_step(api, batch)
    actual, metrics = after_a_step(api, batch, 4)
    chex.assert_trees_all_close(
        actual.batch_stats, expected.batch_stats, rtol=1e-5, atol=1e-6
    )
    assert int(metrics["loss"].count) == 16


@pytest.mark.first_case
@APIS
def test_gradient_is_the_mean_of_those_of_the_parts(api):
    before = api().params
    parts = [{k: v[i::2] for k, v in BATCH.items()} for i in range(2)]
    moved = [after_a_step(api, part)[0].params for part in parts]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 2, *moved)
    actual, _ = after_a_step(api, BATCH, 2)
    chex.assert_trees_all_close(actual.params, mean, rtol=1e-4, atol=1e-6)
    assert np.any(actual.params["first"]["kernel"] != before["first"]["kernel"])


@pytest.mark.first_case
@APIS
def test_parts_drop_out_different_units(api):
    """The second part holds the same examples, so that only the dropout differs."""
    twice = jax.tree.map(lambda array: np.repeat(array, 2, axis=0), BATCH)
    options = {"dropout": 0.5, "batch_norm": False}
    whole, metrics = after_a_step(api, BATCH, **options)
    parts, others = after_a_step(api, twice, 2, **options)
    assert float(others["loss"].total) != 2 * float(metrics["loss"].total)
    other, _ = after_a_step(api, BATCH, **options)
    chex.assert_trees_all_equal(other.params, whole.params)  # Dropout is repeatable.
    assert np.any(parts.params["last"]["kernel"] != whole.params["last"]["kernel"])


def test_multi_steps_of_optax_moves_the_statistics_in_each_call():
    """Each call of `MultiSteps` is a step; `micro_batches` splits a call's batch."""
    tx = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    made, step = Linen(tx), training.make_train_step(loss_fn, micro_batches=2)
    params, stats = made.params, made.batch_stats
    made.take(step, BATCH)
    chex.assert_trees_all_equal(made.params, params)
    assert np.any(made.batch_stats["norm"]["mean"] != stats["norm"]["mean"])
    made.take(step, BATCH)
    assert np.any(made.params["first"]["kernel"] != params["first"]["kernel"])


@pytest.mark.first_case
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_half_precision_gradients_are_added_up_in_float32(api, dtype):
    def loss(model, batch, train):
        return {"loss": 40 * model(batch["deep"]["x"])[:, 0]}

    batch, half = {"deep": {"x": np.ones((4096, 3), np.float32)}}, {"dtype": dtype}
    tx = optax.sgd(1.0)
    if api == "linen":
        net = nn.Dense(1, param_dtype=dtype, **half)
        variables = net.init(jax.random.key(0), np.ones((1, 3)))
        state = training.TrainState.create(net.apply, variables, tx)
        step = training.make_train_step(loss, micro_batches=1024)
        bias = step(state, batch)[0].params["bias"]
    else:
        model = nnx.Linear(3, 1, param_dtype=dtype, rngs=nnx.Rngs(0), **half)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        step = training.make_nnx_train_step(loss, micro_batches=1024)
        step(model, optimizer, batch)
        bias = model.bias[...]
    assert bias.dtype == dtype
    # A sum of 1024 parts would overflow, or stop at 256 of them.
    np.testing.assert_allclose(np.float32(-bias), 40, rtol=1e-2)


@pytest.mark.first_case
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_each_device_has_some_of_every_part(kind):
    def without_an_indexed_sum(model, batch, train):
        labels = jax.nn.one_hot(batch["y"], 3)
        logits = model(batch["x"], train)
        return {"loss": optax.safe_softmax_cross_entropy(logits, labels)}

    expected, _ = after_a_step(Linen, BATCH, 4)
    kinds = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((2,), ("d",), axis_types=kinds)
    with jax.set_mesh(mesh):
        batch = jax.device_put(BATCH, jax.NamedSharding(mesh, jax.P("d")))
        made = Linen()
        step = training.make_train_step(without_an_indexed_sum, micro_batches=4)
        made.take(step, batch)
    for name in ("params", "batch_stats"):
        chex.assert_trees_all_close(
            getattr(made, name), getattr(expected, name), rtol=1e-4, atol=1e-5
        )


@pytest.mark.exhaustive
def test_other_state_of_an_nnx_model_moves_with_every_part():
    def loss(model, batch, train):
        return {"loss": jnp.sum(model(batch["x"]) ** 2, -1)}

    model, expected = small_net.WithOtherState(), small_net.WithOtherState()
    optimizer = nnx.Optimizer(model, optax.sgd(0.0), wrt=nnx.Param)
    step = training.make_nnx_train_step(loss, micro_batches=4)
    structure = nnx.graphdef(model)
    params = nnx.clone(nnx.state(model, nnx.Param))
    for _ in range(3):
        step(model, optimizer, {"x": BATCH["x"]})
        with jaxbn.accumulate(expected):
            for i in range(4):
                expected(BATCH["x"][i::4])
                nnx.update(expected, params)  # A pass writes the kernel that it used.
    chex.assert_trees_all_close(
        nnx.to_pure_dict(nnx.state(model)),
        nnx.to_pure_dict(nnx.state(expected)),
        rtol=1e-5,
        atol=1e-6,
    )
    assert int(model.seen[...]) == 3 * 16
    assert nnx.graphdef(model) == structure


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.complex64])
def test_statistics_of_an_nnx_model_change_their_dtype(dtype):
    """They become wide in the first step, or complex with a complex batch."""
    layer = jaxbn.nnx.BatchNorm(4, momentum=0.0, rngs=nnx.Rngs(0))
    x = BATCH["x"]
    if dtype == jnp.bfloat16:
        cast = lambda leaf: leaf.astype(dtype)  # noqa: E731
        nnx.update(layer, jax.tree.map(cast, nnx.state(layer, nnx.BatchStat)))
    else:
        x = x + 1j

    def loss(model, batch, train):
        return {"loss": jnp.sum(jnp.abs(model(batch["x"])) ** 2, -1)}

    optimizer = nnx.Optimizer(layer, optax.sgd(0.0), wrt=nnx.Param)
    step = training.make_nnx_train_step(loss, micro_batches=4)
    if dtype == jnp.bfloat16:
        with pytest.warns(UserWarning, match="float32"):
            step(layer, optimizer, {"x": x})
    else:
        step(layer, optimizer, {"x": x})
    assert layer.mean[...].dtype == jnp.promote_types(dtype, jnp.float32)
    np.testing.assert_allclose(layer.mean[...], x.mean(0), rtol=1e-4)


def test_layers_of_flax():
    class Theirs(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(False, name="theirs")(x)

    def loss(model, batch, train):
        return {"loss": model(batch["x"])[:, 0]}

    message, tx = r"theirs'\]? could not be collected", optax.sgd(0.1)
    variables = Theirs().init(jax.random.key(0), BATCH["x"])
    state = training.TrainState.create(Theirs().apply, variables, tx)
    with pytest.raises(ValueError, match=message):
        training.make_train_step(loss, micro_batches=2)(state, BATCH)
    model = nnx.Dict(theirs=nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    with pytest.raises(ValueError, match=message):
        training.make_nnx_train_step(loss, micro_batches=2)(model, optimizer, BATCH)


def test_within_passes_that_are_collected_already():
    made, step = Nnx(), training.make_nnx_train_step(loss_fn, micro_batches=2)
    with (
        pytest.raises(ValueError, match="must not accumulate already"),
        jaxbn.accumulate(made.model),
    ):
        made.take(step, BATCH)


@APIS
def test_errors(api):
    with pytest.raises(ValueError, match="`micro_batches` must be at least 1, got 0"):
        api.train(loss_fn, micro_batches=0)
    with pytest.raises(
        ValueError, match=r"`batch.*'x'.*` .* multiple of 5 .*\(16, 4\)"
    ):
        after_a_step(api, BATCH, 5)


@APIS
def test_compiles_once(api):
    made, step = api(), api.train(loss_fn, micro_batches=2)
    made.take(step, BATCH)
    traced = []
    nets = {Linen: both_apis.Net, Nnx: both_apis.Model}
    original = nets[api].__call__
    nets[api].__call__ = lambda *args: traced.append(1) or original(*args)
    try:
        made.take(step, BATCH)
    finally:
        nets[api].__call__ = original
    assert not traced
