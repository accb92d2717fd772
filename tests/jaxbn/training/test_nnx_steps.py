"""Steps of NNX models: equal to those of the same model in Linen, in every style."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn.nnx
from jaxbn import parallel, testing, training
from tests import styles
from tests.small_net import BATCH, Net, loss_fn, make_state, make_variables

P = jax.P


class Model(nnx.Module):
    """`tests.small_net.Net` with the same parameters."""

    def __init__(self, axis_name=None, dropout=0.0):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = jaxbn.nnx.BatchNorm(8, momentum=0.5, axis_name=axis_name, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)
        params = make_variables(Net())["params"]
        for layer, name in ((self.first, "Dense_0"), (self.last, "Dense_1")):
            layer.kernel[...] = jnp.array(params[name]["kernel"])

    def __call__(self, x, train, mask=None):
        mask = None if mask is None else mask[:, None]
        x = nnx.relu(self.norm(self.first(x), mask=mask))
        return self.last(self.dropout(x))


def make(tx=None, **options):
    model = Model(**options)
    return model, nnx.Optimizer(model, tx or optax.sgd(0.1), wrt=nnx.Param)


def as_linen(model):
    """Parameters and statistics in Linen's tree."""
    values = nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    norm = values["norm"]
    stats = {name: norm.pop(name) for name in ("mean", "var")}
    params = {
        "Dense_0": values["first"],
        "BatchNorm_0": norm,
        "Dense_1": values["last"],
    }
    return params, {"BatchNorm_0": stats}


PADDED = {
    "x": np.concatenate([BATCH["x"], np.full((4, 4), 7, np.float32)]),
    "y": np.concatenate([BATCH["y"], np.zeros(4, int)]),
    "mask": np.arange(16) < 12,
}


@pytest.mark.parametrize("batch", [BATCH, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "tx",
    [
        pytest.param(optax.adam(0.1), id="adam"),
        pytest.param(optax.lbfgs(1.0), id="lbfgs", marks=pytest.mark.exhaustive),
    ],
)
def test_equals_the_step_of_the_linen_model(batch, tx):
    model, optimizer = make(tx)
    step, evaluate = (
        training.make_nnx_train_step(loss_fn),
        training.make_nnx_eval_step(loss_fn),
    )
    state = make_state(tx=tx)
    linen_step = training.make_train_step(loss_fn)
    for _ in range(3):
        metrics = step(model, optimizer, batch)
        state, expected = linen_step(state, batch)
        chex.assert_trees_all_close(metrics, expected, rtol=1e-4)
    chex.assert_trees_all_close(
        as_linen(model), (state.params, state.batch_stats), rtol=1e-4, atol=1e-5
    )
    chex.assert_trees_all_close(
        evaluate(model, batch),
        training.make_eval_step(loss_fn)(state, batch),
        rtol=1e-4,
    )


def test_modes_of_the_model_stay_and_evaluation_changes_nothing():
    model, optimizer = make(dropout=0.5)
    model.eval()
    before = nnx.clone(model.norm.mean)[...]
    metrics = training.make_nnx_eval_step(loss_fn)(model, BATCH)
    again = training.make_nnx_eval_step(loss_fn)(model, BATCH)
    chex.assert_trees_all_equal(metrics, again)  # No dropout.
    np.testing.assert_array_equal(model.norm.mean[...], before)
    step = training.make_nnx_train_step(loss_fn)
    losses = {float(step(model, optimizer, BATCH)["loss"]) for _ in range(3)}
    assert len(losses) == 3
    assert np.all(model.norm.mean[...] != before)
    assert model.norm.use_running_average is True
    assert model.dropout.deterministic is True


def test_dropout_has_another_mask_in_every_step():
    model, optimizer = make(optax.sgd(0.0), dropout=0.5)
    step = training.make_nnx_train_step(loss_fn)
    losses = {float(step(model, optimizer, BATCH)["loss"]) for _ in range(3)}
    assert len(losses) == 3


def test_compiles_once():
    chex.clear_trace_counter()
    step = training.make_nnx_train_step(chex.assert_max_traces(loss_fn, n=1))
    model, optimizer = make()
    for _ in range(3):
        step(model, optimizer, BATCH)


def test_only_what_the_optimiser_moves():
    model = Model()
    wrt = nnx.All(nnx.Param, nnx.PathContains("last"))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=wrt)
    before = nnx.clone(nnx.state(model, nnx.Param))
    training.make_nnx_train_step(loss_fn)(model, optimizer, BATCH)
    after = nnx.state(model, nnx.Param)
    chex.assert_trees_all_equal(before["first"], after["first"])
    assert np.any(before["last"]["kernel"][...] != after["last"]["kernel"][...])
    assert np.all(model.norm.mean[...] != 0)


SHARDED = {name: value[:8] for name, value in BATCH.items()}


def parallel_step(style, model, optimizer):
    """Metrics of a step whose batch is split over four devices."""
    axis_name = None if style == "jit" else "d"
    step = training.make_nnx_train_step(loss_fn, axis_name=axis_name)
    mesh = parallel.data_mesh(jax.devices()[:4], axis_name="d")
    if style == "jit":
        nnx.update(model, parallel.replicate(nnx.state(model), mesh))
        nnx.update(optimizer, parallel.replicate(nnx.state(optimizer), mesh))
        return step(model, optimizer, parallel.shard_batch(SHARDED, mesh))
    if style == "shard_map":
        mapped = nnx.shard_map(
            step, mesh=mesh, in_specs=(P(), P(), P("d")), out_specs=P()
        )
        return mapped(model, optimizer, SHARDED)
    whole = nnx.StateAxes({...: None})
    mapped = nnx.vmap(step, in_axes=(whole, whole, 0), axis_name="d", axis_size=4)
    metrics = mapped(
        model, optimizer, jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), SHARDED)
    )
    testing.assert_in_sync(metrics, axis=0)
    return jax.tree.map(lambda leaf: leaf[0], metrics)


@pytest.mark.parametrize(
    "style", styles.every(("jit", "shard_map", "vmap"), quick=("shard_map",))
)
def test_every_style_equals_one_device(style):
    model, optimizer = make()
    expected = training.make_nnx_train_step(loss_fn)(model, optimizer, SHARDED)
    expected_state = jax.tree.map(jnp.copy, as_linen(model))
    model, optimizer = make(axis_name=None if style == "jit" else "d")
    metrics = parallel_step(style, model, optimizer)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)
    chex.assert_trees_all_close(as_linen(model), expected_state, rtol=1e-4, atol=1e-6)


def test_unbound_axis():
    step = training.make_nnx_train_step(loss_fn, axis_name="data")
    with pytest.raises(ValueError, match=r"`axis_name` must be bound .* 'data'"):
        step(*make(), BATCH)


def test_mean_instead_of_values():
    def mean(model, batch, train):
        return {"loss": jnp.mean(loss_fn(model, batch, train)["loss"])}

    with pytest.raises(ValueError, match="one value per example"):
        training.make_nnx_train_step(mean)(*make(), BATCH)
