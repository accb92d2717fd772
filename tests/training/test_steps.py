"""Steps of training and evaluation, for Linen and NNX models alike."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxbn import parallel, testing, training
from tests import styles
from tests.training import both_apis
from tests.training.both_apis import (
    APIS,
    BATCH,
    BATCHES,
    PADDED,
    Linen,
    Nnx,
    loss_fn,
)

P = jax.P


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    """Parameters and statistics agree, up to the rounding of a few steps."""
    for name in ("params", "batch_stats"):
        chex.assert_trees_all_close(
            getattr(actual, name), getattr(expected, name), rtol=rtol, atol=atol
        )


@APIS
@pytest.mark.parametrize("batch_norm", [True, False])
def test_equals_a_step_by_hand(api, batch_norm):
    net = both_apis.Net(batch_norm)
    variables = both_apis.init_variables(net)

    def loss(params):
        logits, updates = net.apply(
            variables | {"params": params}, BATCH["x"], True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels
        return losses(logits, BATCH["y"]).mean(), updates

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, updates), grads = grad(variables["params"])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
    made = api(batch_norm=batch_norm)
    metrics = made.take(api.train(loss_fn), BATCH)
    chex.assert_trees_all_close(made.params, expected, rtol=1e-5, atol=1e-6)
    stats = updates.get("batch_stats", {})
    chex.assert_trees_all_close(made.batch_stats, stats, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"].mean, value, rtol=1e-6)
    assert int(metrics["accuracy"].count) == 16
    assert made.step == 1


@BATCHES
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_linen_and_nnx_agree(batch, micro_batches):
    made, other = (api(optax.adam(0.1)) for api in (Linen, Nnx))
    steps = [t.train(loss_fn, micro_batches=micro_batches) for t in (made, other)]
    for _ in range(3):
        metrics = [t.take(s, batch) for t, s in zip((made, other), steps, strict=True)]
        chex.assert_trees_all_close(*metrics, rtol=1e-4)
    assert_close(made, other, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(made.evaluate(batch), other.evaluate(batch), rtol=1e-4)


@APIS
def test_learns_and_keeps_valid_statistics(api):
    made, step = api(optax.adam(1e-2)), api.train(loss_fn)
    losses = [float(made.take(step, BATCH)["loss"]) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    testing.assert_valid_batch_stats(made.batch_stats)


@pytest.mark.first_case
@APIS
@pytest.mark.parametrize(
    "several",
    [False, pytest.param(True, marks=pytest.mark.exhaustive)],
    ids=["train", "multi"],
)
def test_padding_changes_nothing(api, several):
    made = []
    for batch in (BATCH, PADDED):
        each = api()
        if several:
            step, batch = api.multi(loss_fn), both_apis.stacked(batch, 2)
        else:
            step = api.train(loss_fn)
        made.append((each, each.take(step, batch)))
    (whole, expected), (padded, metrics) = made
    assert_close(padded, whole)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)


@pytest.mark.first_case
@APIS
@both_apis.PARTS
def test_several_steps_in_one_call_equal_single_steps(api, micro_batches):
    batches = [{k: v[i : i + 8] for k, v in BATCH.items()} for i in (0, 4, 8)]
    single, together = api(dropout=0.3), api(dropout=0.3)
    step = api.train(loss_fn, micro_batches=micro_batches)
    total = [single.take(step, batch) for batch in batches]
    total = jax.tree.map(lambda *leaves: sum(leaves), *total)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    steps = api.multi(loss_fn, micro_batches=micro_batches)
    metrics = together.take(steps, stacked)
    assert_close(together, single)
    assert together.step == 3
    chex.assert_trees_all_close(metrics, total, rtol=1e-5)


@pytest.mark.first_case
@APIS
@pytest.mark.parametrize("several", [False, True], ids=["train", "multi"])
def test_compiles_once_per_shape(api, several):
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(loss_fn, n=1)
    step, made = (api.multi if several else api.train)(traced), api()
    batch = both_apis.stacked(BATCH, 2) if several else BATCH
    for _ in range(3):
        made.take(step, batch)
    with pytest.raises(AssertionError, match="traced > 1"):
        made.take(step, {k: v[..., :1].repeat(3, -1) for k, v in batch.items()})


@APIS
def test_dropout_differs_from_step_to_step(api):
    made, step = api(optax.sgd(0.0), dropout=0.5), api.train(loss_fn)
    assert len({float(made.take(step, BATCH)["loss"]) for _ in range(3)}) == 3


@APIS
def test_optimisers_that_take_the_loss(api):
    # A loss that never improves by a factor of 2 halves the rate every step.
    plateau = optax.contrib.reduce_on_plateau(0.5, patience=1, rtol=0.5)
    made, step = api(optax.chain(optax.sgd(0.1), plateau)), api.train(loss_fn)
    for _ in range(8):
        made.take(step, BATCH)
    (scale,) = (
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(made.opt_state)
        if jax.tree_util.keystr(path[-1:], simple=True) == "scale"
    )
    assert scale < 0.2


@pytest.mark.first_case
@APIS
@pytest.mark.parametrize("name", ["sam", "multi_steps"])
def test_optimisers_that_take_only_some_of_it(api, name):
    if name == "sam":
        tx = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2)
    else:
        plateau = optax.contrib.reduce_on_plateau(0.5, patience=1, rtol=0.5)
        tx = optax.MultiSteps(optax.chain(optax.sgd(0.1), plateau), 2)
        tx = tx.gradient_transformation()
    made, step = api(tx), api.train(loss_fn)
    before = made.params
    for _ in range(4):
        made.take(step, BATCH)
    assert np.any(made.params["first"]["kernel"] != before["first"]["kernel"])


@APIS
def test_an_optimiser_that_searches_along_a_line(api):
    with pytest.raises(TypeError, match="value_fn"):
        api(optax.lbfgs(1.0)).take(api.train(loss_fn), BATCH)


PARALLEL = ("jit", "shard_map", "shard_map unchecked", "vmap", "pmap")


@APIS
@both_apis.PARTS
@pytest.mark.parametrize("style", styles.every(PARALLEL, quick=("shard_map",)))
def test_every_style_equals_one_device(api, style, micro_batches):
    made = api(axis_name=None if style == "jit" else "d")
    metrics = both_apis.over_devices(made, style, PADDED, micro_batches=micro_batches)
    # In parts, each device takes every other of its own examples.
    order = np.arange(24).reshape(4, -1, micro_batches).swapaxes(0, 1).reshape(-1)
    order = np.arange(24) if style == "jit" else order
    batch = {name: array[order] for name, array in PADDED.items()}
    alone = api()
    expected = alone.take(api.train(loss_fn, micro_batches=micro_batches), batch)
    assert_close(made, alone, rtol=1e-4)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)


@APIS
def test_unbound_axis(api):
    step = api.train(loss_fn, axis_name="data")
    with pytest.raises(ValueError, match=r"`axis_name` must be bound .* 'data'"):
        api().take(step, BATCH)


@pytest.mark.first_case
@APIS
def test_evaluation_is_exact_on_a_ragged_last_batch(api):
    made = api(dropout=0.5)
    before = made.batch_stats
    whole = made.evaluate(BATCH)
    total = None
    for start in (0, 6, 12):
        rows = np.arange(start, start + 6)
        batch = {k: v[rows % 16] for k, v in BATCH.items()} | {"mask": rows < 16}
        metrics = made.evaluate(batch)
        total = metrics if total is None else jax.tree.map(jnp.add, total, metrics)
    assert int(total["accuracy"].total) == int(whole["accuracy"].total)
    assert int(total["accuracy"].count) == 16
    np.testing.assert_allclose(total["loss"].mean, whole["loss"].mean, rtol=1e-6)
    chex.assert_trees_all_equal(made.batch_stats, before)


class TestWhatJitReturns:
    """The step of a Linen model is a jitted function like any other."""

    def test_methods(self):
        step, state = training.make_train_step(loss_fn), Linen().state
        assert type(step) is type(jax.jit(lambda x: x))
        assert "all_reduce" not in step.lower(state, BATCH).as_text()
        assert step.trace(state, BATCH).jaxpr
        new, metrics = jax.eval_shape(step, state, BATCH)
        assert new.step.shape == metrics["loss"].total.shape == ()
        new, _ = step.lower(state, BATCH).compile()(state, BATCH)
        assert int(new.step) == 1

    def test_a_mapped_step_is_lowered_as_a_whole(self):
        """It must not take the attributes of the inner step, which has no axis."""
        step = training.make_train_step(loss_fn, axis_name="d")
        mesh = parallel.data_mesh(jax.devices()[:2], axis_name="d")
        specs = {"in_specs": (P(), P("d")), "out_specs": P()}
        mapped = jax.shard_map(step, mesh=mesh, check_vma=False, **specs)
        text = jax.jit(mapped).lower(Linen().state, BATCH).as_text()
        assert "all_reduce" in text

    def test_the_state_is_donated_and_the_variables_are_not(self):
        net = both_apis.Net()
        variables = both_apis.init_variables(net)
        state = training.TrainState.create(net.apply, variables, optax.sgd(0.1))
        step = training.make_train_step(loss_fn)
        step(state, BATCH)
        assert state.params["first"]["kernel"].is_deleted()
        chex.assert_tree_all_finite(variables)
        with pytest.raises((ValueError, RuntimeError), match="deleted"):
            step(state, BATCH)

    def test_an_optimiser_whose_state_holds_the_parameters(self):
        made, step = Linen(optax.contrib.prodigy()), training.make_train_step(loss_fn)
        before = made.params
        for _ in range(30):
            metrics = made.take(step, BATCH)
        assert float(metrics["loss"]) < 1
        # The optimiser keeps the initial parameters, not the current ones.
        chex.assert_trees_all_close(made.state.opt_state.params0, before)


@pytest.mark.first_case
@pytest.mark.parametrize("batch", [BATCH, PADDED], ids=["whole", "masked"])
def test_explicit_mesh(batch):
    def without_an_indexed_sum(model, batch, train):
        logits = model(batch["x"], train, batch.get("mask"))
        labels = jax.nn.one_hot(batch["y"], 3)
        return {"loss": optax.safe_softmax_cross_entropy(logits, labels)}

    expected = Linen().take(training.make_train_step(loss_fn), batch)["loss"]
    mesh = jax.make_mesh((4,), ("d",))
    with jax.set_mesh(mesh):
        # The mask on every device, as one that was never sharded.
        specs = {name: P() if name == "mask" else P("d") for name in batch}
        batch = {
            name: jax.device_put(array, jax.NamedSharding(mesh, specs[name]))
            for name, array in batch.items()
        }
        metrics = Linen().take(training.make_train_step(without_an_indexed_sum), batch)
    np.testing.assert_allclose(metrics["loss"].mean, expected.mean, rtol=1e-5)


@pytest.mark.first_case
@APIS
def test_strict_promotion(api):
    with jax.numpy_dtype_promotion("strict"):
        made = api()
        metrics = made.take(api.train(loss_fn), jax.tree.map(jnp.asarray, BATCH))
        float(metrics["loss"])
        made.evaluate(jax.tree.map(jnp.asarray, BATCH))


@pytest.mark.first_case
@APIS
def test_two_calls_of_the_model_update_the_statistics_twice(api):
    def two_views(model, batch, train):
        loss_fn(model, batch, train)
        return loss_fn(model, batch, train)

    means = []
    for each in (loss_fn, two_views):
        made = api()
        made.take(api.train(each), BATCH)
        means.append(made.batch_stats["norm"]["mean"])
    np.testing.assert_allclose(means[1], 1.5 * means[0], rtol=1e-5)


class TestOnlyNnx:
    def test_modes_of_the_model_stay(self):
        made, step = Nnx(dropout=0.5), training.make_nnx_train_step(loss_fn)
        made.model.eval()
        losses = {float(made.take(step, BATCH)["loss"]) for _ in range(3)}
        assert len(losses) == 3
        assert np.all(made.batch_stats["norm"]["mean"] != 0)
        assert made.model.norm.use_running_average is True
        assert made.model.dropout.deterministic is True

    def test_only_what_the_optimiser_moves(self):
        made = Nnx()
        wrt = nnx.All(nnx.Param, nnx.PathContains("last"))
        made.optimizer = nnx.Optimizer(made.model, optax.sgd(0.1), wrt=wrt)
        before = made.params
        made.take(training.make_nnx_train_step(loss_fn, micro_batches=2), BATCH)
        chex.assert_trees_all_equal(before["first"], made.params["first"])
        assert np.any(before["last"]["kernel"] != made.params["last"]["kernel"])
        assert np.all(made.batch_stats["norm"]["mean"] != 0)
