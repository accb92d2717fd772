import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from jaxbn import parallel, testing, training
from tests.small_net import BATCH, Net, loss_fn, make_state, make_variables


def mean_loss_fn(model, batch, train):
    """Returns the loss without an indexed sum, which Explicit axes do not support."""
    logits = model(batch["x"], train=train, mask=batch.get("mask"))
    labels = jax.nn.one_hot(batch["y"], 3)
    return {"loss": optax.safe_softmax_cross_entropy(logits, labels)}


class TrainStepTest(chex.TestCase):
    @parameterized.parameters(True, False)
    def test_equals_a_step_by_hand(self, batch_norm):
        net = Net(batch_norm)
        variables = make_variables(net)
        stats = {"batch_stats": variables["batch_stats"]} if batch_norm else {}

        def loss(params):
            logits, updates = net.apply(
                {"params": params, **stats}, BATCH["x"], train=True,
                mutable=["batch_stats"],
            )  # fmt: skip
            losses = optax.softmax_cross_entropy_with_integer_labels
            return losses(logits, BATCH["y"]).mean(), updates

        by_hand = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, updates), grads = by_hand(variables["params"])
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
        state, metrics = training.make_train_step(loss_fn)(make_state(net), BATCH)
        chex.assert_trees_all_close(state.params, expected, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(
            state.batch_stats, updates.get("batch_stats", {}), rtol=1e-6
        )
        np.testing.assert_allclose(metrics["loss"].mean, value, rtol=1e-6)
        assert int(metrics["accuracy"].count) == 12
        assert int(state.step) == 1

    def test_learns_and_keeps_valid_statistics(self):
        state, step = make_state(tx=optax.adam(1e-2)), training.make_train_step(loss_fn)
        losses = []
        for _ in range(60):
            state, metrics = step(state, BATCH)
            losses.append(float(metrics["loss"].mean))
        assert losses[-1] < 0.5 * losses[0]
        testing.assert_valid_batch_stats(state.batch_stats)

    def test_padding_changes_nothing(self):
        padded = {
            "x": np.concatenate([BATCH["x"], np.full((4, 4), 7, np.float32)]),
            "y": np.concatenate([BATCH["y"], np.zeros(4, int)]),
            "mask": np.arange(16) < 12,
        }
        for make in (training.make_train_step, training.make_multi_step):
            batches = [BATCH, padded]
            if make is training.make_multi_step:
                batches = [jax.tree.map(lambda a: a[None], batch) for batch in batches]
            (state, metrics), (other, other_metrics) = (
                make(loss_fn)(make_state(), batch) for batch in batches
            )
            chex.assert_trees_all_close(
                (other.params, other.batch_stats, other_metrics),
                (state.params, state.batch_stats, metrics),
                rtol=1e-5,
                atol=1e-6,
            )

    def test_multi_step_equals_single_steps(self):
        state, total = make_state(Net(dropout=0.3)), None
        step = training.make_train_step(loss_fn)
        batches = [{k: v[i : i + 4] for k, v in BATCH.items()} for i in (0, 4, 8)]
        for batch in batches:
            state, metrics = step(state, batch)
            total = metrics if total is None else jax.tree.map(jnp.add, total, metrics)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        other, metrics = training.make_multi_step(loss_fn)(
            make_state(Net(dropout=0.3)), stacked
        )
        chex.assert_trees_all_close(
            (other.params, other.batch_stats, other.step, metrics),
            (state.params, state.batch_stats, state.step, total),
            rtol=1e-5,
            atol=1e-6,
        )

    def test_compiles_once_per_shape(self):
        chex.clear_trace_counter()
        traced = chex.assert_max_traces(loss_fn, n=1)
        step, state = training.make_train_step(traced), make_state()
        for _ in range(3):
            state, _ = step(state, BATCH)
        with pytest.raises(AssertionError, match="traced > 1"):
            step(state, {k: v[:6] for k, v in BATCH.items()})

    def test_state_is_donated_and_the_variables_are_not(self):
        net = Net()
        variables = make_variables(net)
        state = training.TrainState.create(net.apply, variables, optax.sgd(0.1))
        training.make_train_step(loss_fn)(state, BATCH)
        assert state.params["Dense_0"]["kernel"].is_deleted()
        chex.assert_tree_all_finite(variables)

    def test_optimiser_whose_state_holds_the_parameters(self):
        state = make_state(tx=optax.contrib.prodigy())
        before = jax.tree.map(np.array, state.params)
        step = training.make_train_step(loss_fn)
        for _ in range(30):
            state, metrics = step(state, BATCH)
        assert int(state.step) == 30
        assert float(metrics["loss"]) < 1
        # The optimiser keeps the initial parameters, not the current ones.
        chex.assert_trees_all_close(state.opt_state.params0, before)

    def test_dropout_differs_from_step_to_step(self):
        state = make_state(Net(batch_norm=False, dropout=0.5), optax.sgd(0.0))
        step = training.make_train_step(loss_fn)
        losses = []
        for _ in range(3):
            state, metrics = step(state, BATCH)
            losses.append(float(metrics["loss"].total))
        assert len(set(losses)) == 3

    def test_two_calls_of_the_model_update_the_statistics_twice(self):
        def two_views(model, batch, train):
            loss_fn(model, batch, train)
            return loss_fn(model, batch, train)

        once, _ = training.make_train_step(loss_fn)(make_state(), BATCH)
        twice, _ = training.make_train_step(two_views)(make_state(), BATCH)
        mean_once, mean_twice = (
            s.batch_stats["BatchNorm_0"]["mean"] for s in (once, twice)
        )
        np.testing.assert_allclose(mean_twice, 1.5 * mean_once, rtol=1e-5)

    def losses(self, tx, steps=8):
        state, step = make_state(tx=tx), training.make_train_step(loss_fn)
        losses = []
        for _ in range(steps):
            state, metrics = step(state, BATCH)
            losses.append(float(metrics["loss"]))
        return state, losses

    def test_optimisers_that_take_the_loss(self):
        # A loss that never improves by a factor of 2 halves the rate every step.
        plateau = optax.contrib.reduce_on_plateau(0.5, patience=1, rtol=0.5)
        state, _ = self.losses(optax.chain(optax.sgd(0.1), plateau))
        assert float(state.opt_state[1].scale) < 0.2

    @pytest.mark.exhaustive
    def test_optimisers_that_search_along_a_line(self):
        """Batch statistics are part of the loss that they search along."""
        _, losses = self.losses(optax.lbfgs(1.0))
        assert losses[-1] < 0.3 * losses[0]

    @parameterized.parameters("sam", "multi_steps")
    def test_optimisers_that_take_only_some_of_it(self, name):
        if name == "sam":
            tx = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2)
        else:
            plateau = optax.contrib.reduce_on_plateau(0.5, patience=1, rtol=0.5)
            tx = optax.MultiSteps(optax.chain(optax.sgd(0.1), plateau), 2)
            tx = tx.gradient_transformation()
        state, step = make_state(tx=tx), training.make_train_step(loss_fn)
        before = jax.tree.map(np.array, state.params)
        for _ in range(4):
            state, _ = step(state, BATCH)
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(state.params, before)

    @parameterized.parameters(False, True)
    def test_explicit_mesh(self, masked):
        mesh = jax.make_mesh((4,), ("d",))
        batch = BATCH | ({"mask": np.arange(12) < 9} if masked else {})
        _, expected = training.make_train_step(loss_fn)(make_state(), batch)
        with jax.set_mesh(mesh):
            # The mask on every device, as one that was never sharded.
            put = lambda v, s: jax.device_put(v, jax.NamedSharding(mesh, s))  # noqa: E731
            batch = {
                k: put(v, jax.P() if k == "mask" else jax.P("d"))
                for k, v in batch.items()
            }
            _, metrics = training.make_train_step(mean_loss_fn)(make_state(), batch)
        chex.assert_trees_all_close(
            jax.tree.leaves(metrics), jax.tree.leaves(expected["loss"]), rtol=1e-5
        )

    def test_strict_promotion(self):
        with jax.numpy_dtype_promotion("strict"):
            batch = {k: jnp.asarray(v) for k, v in BATCH.items()}
            state, metrics = training.make_train_step(loss_fn)(make_state(), batch)
            float(metrics["loss"])
            training.make_eval_step(loss_fn)(state, batch)


class EvalStepTest(chex.TestCase):
    def test_accuracy_is_exact_on_a_ragged_last_batch(self):
        state, evaluate = make_state(), training.make_eval_step(loss_fn)
        whole = evaluate(state, BATCH)
        total = None
        for start in (0, 5, 10):
            size = min(5, 12 - start)
            batch = {
                k: np.concatenate([v[start : start + 5], v[: 5 - size]])
                for k, v in BATCH.items()
            }
            batch["mask"] = np.arange(5) < size
            metrics = evaluate(state, batch)
            total = metrics if total is None else jax.tree.map(jnp.add, total, metrics)
        assert int(total["accuracy"].total) == int(whole["accuracy"].total)
        assert int(total["accuracy"].count) == 12
        np.testing.assert_allclose(total["loss"].mean, whole["loss"].mean, rtol=1e-6)

    def test_uses_the_running_statistics(self):
        state = make_state()
        one = {k: v[:1] for k, v in BATCH.items()}  # No variance of its own.
        metrics = training.make_eval_step(loss_fn)(state, one)
        chex.assert_tree_all_finite(metrics)


def test_a_mapped_step_is_lowered_as_a_whole():
    """It must not take the attributes of the inner step, which has no axis."""
    step = training.make_train_step(loss_fn, axis_name="d")
    mapped = jax.shard_map(
        step,
        mesh=parallel.data_mesh(jax.devices()[:2], axis_name="d"),
        in_specs=(jax.P(), jax.P("d")),
        out_specs=(jax.P(), jax.P()),
        check_vma=False,
    )
    text = jax.jit(mapped).lower(make_state(), BATCH).as_text()
    assert "all_reduce" in text
    alone = training.make_train_step(loss_fn)
    shapes = alone.eval_shape(make_state(), BATCH)
    assert shapes[0].step.shape == ()
    assert "all_reduce" not in alone.lower(make_state(), BATCH).as_text()
    alone.clear_cache()
    assert alone.trace(make_state(), BATCH).jaxpr
