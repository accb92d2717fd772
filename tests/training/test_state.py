from typing import Any

import chex
import flax.core
import flax.serialization
import jax
import jax.numpy as jnp
import optax
import pytest
from absl.testing import parameterized
from flax.training import train_state

from jaxbn import training
from tests.small_net import BATCH, Net, loss_fn, make_state, make_variables


class TrainStateTest(chex.TestCase):
    def test_is_the_state_of_flax(self):
        net = Net()
        variables = make_variables(net)
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
        variables = make_variables(net)
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
        variables = make_variables(net)
        state = training.TrainState.create(
            net.apply, flax.core.freeze(variables), optax.sgd(0.1)
        )
        batches = jax.tree.map(lambda a: a[None], BATCH)
        state, _ = training.make_multi_step(loss_fn)(state, batches)
        assert int(state.step) == 1

    def test_wrong_arguments(self):
        net = Net()
        variables = make_variables(net)
        create, tx = training.TrainState.create, optax.sgd(0.1)
        with pytest.raises(ValueError, match="a tree of parameters alone as `params=`"):
            create(net.apply, variables["params"], tx)
        with pytest.raises(ValueError, match="and not both"):
            create(net.apply, variables, tx, params=variables["params"])
        with pytest.raises(ValueError, match="and not both"):
            create(net.apply, variables, tx, batch_stats=variables["batch_stats"])
        with pytest.raises(ValueError, match="`tx` must be"):
            create(net.apply, variables)


class ErrorTest(parameterized.TestCase):
    def test_unknown_collection(self):
        with pytest.raises(ValueError, match="got also \\['cache'\\]"):
            training.TrainState.create(
                Net().apply, {"params": {}, "cache": {}}, optax.sgd(0.1)
            )
