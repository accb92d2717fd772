from typing import Any

import chex
import flax.core
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from flax.training import train_state

from jaxbn import testing, training
from jaxbn.linen import BatchNorm

RNG = np.random.default_rng(0)
BATCH = {
    "x": RNG.standard_normal((12, 4)).astype(np.float32),
    "y": RNG.integers(3, size=12),
}


class Net(nn.Module):
    batch_norm: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train, mask=None):
        x = nn.Dense(8)(x)
        if self.batch_norm:
            mask = None if mask is None else mask[:, None]
            x = BatchNorm(momentum=0.5)(x, use_running_average=not train, mask=mask)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


def loss_fn(model, batch, train):
    logits = model(batch["x"], train=train, mask=batch.get("mask"))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return {"loss": loss, "accuracy": logits.argmax(-1) == batch["y"]}


def mean_loss_fn(model, batch, train):
    """Without an indexed sum, which a mesh of Explicit axes does not take."""
    logits = model(batch["x"], train=train, mask=batch.get("mask"))
    labels = jax.nn.one_hot(batch["y"], 3)
    return {"loss": optax.safe_softmax_cross_entropy(logits, labels)}


def make_state(net=None, tx=None):
    net = net or Net()
    variables = net.init(jax.random.key(0), BATCH["x"], train=False)
    return training.TrainState.create(net.apply, variables, tx or optax.sgd(0.1))


class TrainStepTest(chex.TestCase):
    @parameterized.parameters(True, False)
    def test_equals_a_step_by_hand(self, batch_norm):
        net = Net(batch_norm)
        variables = net.init(jax.random.key(0), BATCH["x"], train=False)
        stats = {"batch_stats": variables["batch_stats"]} if batch_norm else {}

        def loss(params):
            logits, updates = net.apply(
                {"params": params, **stats}, BATCH["x"], train=True,
                mutable=["batch_stats"],
            )  # fmt: skip
            losses = optax.softmax_cross_entropy_with_integer_labels
            return losses(logits, BATCH["y"]).mean(), updates

        (value, updates), grads = jax.value_and_grad(loss, has_aux=True)(
            variables["params"]
        )
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
        variables = net.init(jax.random.key(0), BATCH["x"], train=False)
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
        # What the optimiser remembers is where it began, not where it is.
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

    @parameterized.parameters("reduce_on_plateau", "lbfgs")
    def test_optimisers_that_take_more_than_a_gradient(self, name):
        if name == "lbfgs":
            tx = optax.lbfgs(1.0)
        else:
            # A loss that never improves by a factor of 2 halves the rate every step.
            plateau = optax.contrib.reduce_on_plateau(0.5, patience=1, rtol=0.5)
            tx = optax.chain(optax.sgd(0.1), plateau)
        state, step = make_state(tx=tx), training.make_train_step(loss_fn)
        losses = []
        for _ in range(8):
            state, metrics = step(state, BATCH)
            losses.append(float(metrics["loss"]))
        if name == "lbfgs":  # Batch statistics are part of the loss it searches along.
            assert losses[-1] < 0.3 * losses[0]
        else:
            assert float(state.opt_state[1].scale) < 0.2

    def test_line_search_is_the_same_on_all_devices(self):
        """Under vmap a sum over devices is not differentiated as the steps need it."""
        states = []
        for axis_name in (None, "d"):
            step = training.make_train_step(loss_fn, axis_name=axis_name)
            state = make_state(Net(batch_norm=False), optax.lbfgs(1.0))
            batch = BATCH
            if axis_name:
                batch = {k: v.reshape(4, 3, *v.shape[1:]) for k, v in BATCH.items()}
                step = jax.vmap(step, (None, 0), axis_name="d")
            for _ in range(2):
                new, _ = step(state, batch)
                first = jax.tree.map(lambda leaf: leaf[0], new) if axis_name else new
                if axis_name:
                    testing.assert_in_sync(new.params, axis=0)
                state = first
            states.append(state.params)
        chex.assert_trees_all_close(*states, rtol=1e-3, atol=1e-4)

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

    def test_names_are_not_split_into_letters(self):
        for options in ({"rngs": "dropout"}, {"mutable": "losses"}):
            with pytest.raises(TypeError, match="must be a sequence of names, got"):
                training.make_train_step(loss_fn, **options)

    def test_parts_of_a_step(self):
        state = make_state()
        gradient = jax.jit(
            lambda state: training.value_and_grad(loss_fn)(state, BATCH)[:3]
        )(state)
        expected, _ = training.make_train_step(loss_fn)(make_state(), BATCH)
        actual = state.apply_gradients(grads=gradient[0], batch_stats=gradient[2])
        chex.assert_trees_all_close(
            jax.tree.leaves((actual.params, actual.batch_stats, actual.step)),
            jax.tree.leaves((expected.params, expected.batch_stats, expected.step)),
            rtol=1e-6,
        )

    def test_further_collections_and_random_streams(self):
        class Noisy(nn.Module):
            @nn.compact
            def __call__(self, x, train, mask=None):
                noise = jax.random.normal(self.make_rng("noise"), x.shape)
                self.sow("losses", "size", jnp.mean(noise**2))
                return nn.Dense(3)(x + noise)

        def with_loss(model, batch, train):
            values = loss_fn(model, batch, train)
            (size,) = model.variables["losses"]["size"]
            sizes = jnp.full_like(values["loss"], size)
            return {**values, "loss": values["loss"] + size, "size": sizes}

        net = Noisy()
        variables = net.init(jax.random.key(0), BATCH["x"], train=False)
        state = training.TrainState.create(
            net.apply, {"params": variables["params"]}, optax.sgd(0.1)
        )
        step = training.make_train_step(with_loss, rngs=("noise",), mutable=("losses",))
        sizes = []
        for _ in range(2):
            state, metrics = step(state, BATCH)
            sizes.append(float(metrics["size"]))
        assert sizes[0] != sizes[1]
        assert all(0.3 < size < 3 for size in sizes)

    def test_other_methods_of_the_model(self):
        class Halves(Net):
            def encode(self, x, train):
                return 2 * self(x, train)

        def encoded(model, batch, train):
            return {"loss": jnp.sum(model.encode(batch["x"], train) ** 2, -1)}

        net = Halves()
        _, metrics = training.make_train_step(encoded)(make_state(net), BATCH)
        assert float(metrics["loss"]) > 0

    def test_strict_promotion(self):
        with jax.numpy_dtype_promotion("strict"):
            batch = {k: jnp.asarray(v) for k, v in BATCH.items()}
            state, metrics = training.make_train_step(loss_fn)(make_state(), batch)
            float(metrics["loss"])
            training.make_eval_step(loss_fn)(state, batch)

    def test_params_that_vary_already(self):
        mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        step = training.make_train_step(loss_fn, axis_name="d")

        def varying(state, batch):
            mark = lambda p: jax.lax.pcast(p, ("d",), to="varying")  # noqa: E731
            marked = state.replace(params=jax.tree.map(mark, state.params))
            new, metrics = step(marked, batch)
            return jax.tree.map(lambda p: jax.lax.pmean(p, "d"), new.params), metrics

        P = jax.P
        params, _ = jax.jit(
            jax.shard_map(
                varying, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P(), P())
            )
        )(make_state(Net(batch_norm=False)), BATCH)
        expected, _ = training.make_train_step(loss_fn)(
            make_state(Net(batch_norm=False)), BATCH
        )
        chex.assert_trees_all_close(params, expected.params, rtol=1e-5)


class TrainStateTest(chex.TestCase):
    def test_is_the_state_of_flax(self):
        net = Net()
        variables = net.init(jax.random.key(0), BATCH["x"], train=False)
        tx = optax.adam(0.1)
        ours = training.TrainState.create(
            apply_fn=net.apply,
            params=variables["params"],
            tx=tx,
            batch_stats=variables["batch_stats"],
        )
        theirs = train_state.TrainState.create(
            apply_fn=net.apply, params=variables["params"], tx=tx
        )
        assert isinstance(ours, train_state.TrainState)
        grads = jax.tree.map(jnp.ones_like, variables["params"])
        ours, theirs = (s.apply_gradients(grads=grads) for s in (ours, theirs))
        chex.assert_trees_all_equal(ours.params, theirs.params)
        assert int(ours.step) == int(theirs.step) == 1
        whole = training.TrainState.create(net.apply, variables, tx)
        chex.assert_trees_all_equal(whole.batch_stats, variables["batch_stats"])

    def test_bytes(self):
        state, _ = training.make_train_step(loss_fn)(make_state(), BATCH)
        saved = flax.serialization.to_bytes(state)
        other = make_state().replace(key=jax.random.key(7))
        restored = flax.serialization.from_bytes(other, saved)
        chex.assert_trees_all_equal(jax.tree.leaves(restored), jax.tree.leaves(state))
        assert restored.key.dtype == state.key.dtype

    def test_bytes_of_a_subclass(self):
        class WithAverage(training.TrainState):
            average: Any = None

        net = Net()
        variables = net.init(jax.random.key(0), BATCH["x"], train=False)
        make = lambda: WithAverage.create(  # noqa: E731
            net.apply, variables, optax.sgd(0.1), average=variables["params"]
        )
        saved = flax.serialization.to_bytes(make())
        for target in (make(), jax.eval_shape(make)):
            restored = flax.serialization.from_bytes(target, saved)
            chex.assert_trees_all_equal(
                jax.tree.leaves(restored), jax.tree.leaves(make())
            )
        with pytest.raises(ValueError, match="must have the fields"):
            flax.serialization.from_bytes(make_state(), saved)
        state, _ = training.make_train_step(loss_fn)(make(), BATCH)
        assert isinstance(state, WithAverage)
        chex.assert_tree_all_finite(variables)  # Copied, not donated.

    def test_frozen_variables(self):
        net = Net()
        variables = net.init(jax.random.key(0), BATCH["x"], train=False)
        state = training.TrainState.create(
            net.apply, flax.core.freeze(variables), optax.sgd(0.1)
        )
        batches = jax.tree.map(lambda a: a[None], BATCH)
        state, _ = training.make_multi_step(loss_fn)(state, batches)
        assert int(state.step) == 1

    def test_wrong_arguments(self):
        net = Net()
        variables = net.init(jax.random.key(0), BATCH["x"], train=False)
        create, tx = training.TrainState.create, optax.sgd(0.1)
        with pytest.raises(ValueError, match="a tree of parameters alone as `params=`"):
            create(net.apply, variables["params"], tx)
        with pytest.raises(ValueError, match="and not both"):
            create(net.apply, variables, tx, params=variables["params"])
        with pytest.raises(ValueError, match="and not both"):
            create(net.apply, variables, tx, batch_stats=variables["batch_stats"])
        with pytest.raises(ValueError, match="`tx` must be"):
            create(net.apply, variables)

    def test_donated_state(self):
        state, step = make_state(), training.make_train_step(loss_fn)
        step(state, BATCH)
        with pytest.raises(ValueError, match="`state` was donated to an earlier step"):
            step(state, BATCH)


class MetricTest(chex.TestCase):
    def test_sum(self):
        step = training.make_eval_step(loss_fn)
        parts = [{k: v[a:b] for k, v in BATCH.items()} for a, b in ((0, 5), (5, 12))]
        total = sum(step(make_state(), part)["loss"] for part in parts)
        whole = step(make_state(), BATCH)["loss"]
        assert int(total.count) == 12
        np.testing.assert_allclose(float(total), float(whole), rtol=1e-6)
        with pytest.raises(TypeError):
            total + 1


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


class WeightDecayTest(chex.TestCase):
    def test_leaves_out_scale_and_bias(self):
        tx = optax.chain(
            optax.add_decayed_weights(0.5, mask=training.weight_decay_mask),
            optax.sgd(1.0),
        )
        state = make_state(tx=tx)
        params = jax.tree.map(jnp.ones_like, state.params)
        updates, _ = tx.update(
            jax.tree.map(jnp.zeros_like, params), tx.init(params), params
        )
        for layer in updates.values():
            for name, update in layer.items():
                expected = -0.5 if name == "kernel" else 0.0
                np.testing.assert_array_equal(update, expected)

    def test_partitioned_params(self):
        boxed = nn.Partitioned(jnp.ones(3), names=("model",))
        mask = training.weight_decay_mask({"bn": {"scale": boxed}, "kernel": boxed})
        assert jax.tree.leaves(mask) == [False, True]
        assert training.weight_decay_mask(jnp.ones(3)) is True


class ErrorTest(parameterized.TestCase):
    def test_unknown_collection(self):
        with pytest.raises(ValueError, match="got also \\['cache'\\]"):
            training.TrainState.create(
                Net().apply, {"params": {}, "cache": {}}, optax.sgd(0.1)
            )

    @parameterized.parameters(
        (lambda values: values.mean(), None, "one value per example"),
        (lambda values: values[:3], np.ones(12, bool), r"\(12,\), as the mask; got"),
    )
    def test_shape_of_values(self, change, mask, message):
        def changed(model, batch, train):
            values = loss_fn(model, {"x": batch["x"], "y": batch["y"]}, train)
            return {**values, "loss": change(values["loss"])}

        batch = BATCH if mask is None else {**BATCH, "mask": mask}
        with pytest.raises(ValueError, match=message):
            training.make_train_step(changed)(make_state(), batch)

    def test_no_mapping(self):
        with pytest.raises(TypeError, match=r"must return a mapping .* got ndarray"):
            training.make_eval_step(lambda model, batch, train: np.ones(3))(
                make_state(), BATCH
            )

    def test_no_loss(self):
        with pytest.raises(ValueError, match=r"with 'loss', got \['error'\]"):
            training.make_eval_step(lambda model, batch, train: {"error": 0})(
                make_state(), BATCH
            )
