import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import mlp


def make_split(examples=30, pixels=16):
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(2, size=(examples, pixels), dtype=np.uint8)),
        "label": jnp.asarray(rng.integers(10, size=examples)),
    }


class TestNetworks:
    @pytest.mark.exhaustive
    def test_same_initial_weights(self):
        states = mlp.init_states(mlp.Hyperparameters(), jax.random.key(0), 16)
        with_bn, without_bn = (states[network].params for network in mlp.NETWORKS)
        for i in range(4):
            name = f"Dense_{i}"
            chex.assert_trees_all_equal(
                with_bn[name]["kernel"], without_bn[name]["kernel"]
            )
            assert ("bias" in with_bn[name]) == (i == 3)
            assert "bias" in without_bn[name]
        assert set(with_bn) - set(without_bn) == {f"BatchNorm_{i}" for i in range(3)}

    @pytest.mark.parametrize("init", ["normal", "uniform"])
    def test_initial_weights(self, init):
        hp = mlp.Hyperparameters(init=init, init_std=0.02, init_per_layer=True)
        states = mlp.init_states(hp, jax.random.key(0), 784)
        params = states["with_bn"].params
        # 78,400 and 10,000 draws: their standard deviation is known to 1 %.
        for name, inputs in (("Dense_0", 784), ("Dense_1", 100)):
            kernel = np.asarray(params[name]["kernel"])
            std = 0.02 * np.sqrt(784 / inputs)
            np.testing.assert_allclose(kernel.std(), std, rtol=0.03)
            largest = np.abs(kernel).max() / std
            assert largest <= 3**0.5 if init == "uniform" else largest > 3
        even = dataclasses.replace(hp, init_per_layer=False)
        kernel = mlp.init_states(even, jax.random.key(0), 784)["with_bn"].params
        np.testing.assert_allclose(kernel["Dense_1"]["kernel"].std(), 0.02, rtol=0.03)

    def test_learning_rate_falls_to_its_share(self):
        hp = mlp.Hyperparameters(decay=0.01, learning_rate=0.5)
        state = mlp.init_states(hp, jax.random.key(0), 16, steps=4)["without_bn"]
        grads = jax.tree.map(jnp.ones_like, state.params)
        moved = []
        for _ in range(5):
            after = state.apply_gradients(grads=grads)
            moved.append(
                float(
                    (state.params["Dense_0"]["bias"] - after.params["Dense_0"]["bias"])[
                        0
                    ]
                )
            )
            state = after
        np.testing.assert_allclose(moved[0], 0.5, rtol=1e-5)
        np.testing.assert_allclose(moved[4], 0.005, rtol=1e-3)

    def test_accuracy_by_exact_population_statistics(self):
        split, pixels = make_split(), 16
        hp = mlp.Hyperparameters(exact_population=True)
        state = mlp.init_states(hp, jax.random.key(0), pixels)["with_bn"]
        model = mlp.make_model(hp, "with_bn")
        images = split["image"].astype(jnp.float32)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        step = jax.jit(
            lambda v: model.apply(v, images, train=True, mutable=["batch_stats"])[1]
        )
        for _ in range(800):  # 0.99^800 of the initial statistics remain.
            variables |= step(variables)
        logits, _ = model.apply(variables, images, train=False)
        expected = jnp.mean(logits.argmax(-1) == split["label"])
        assert mlp.accuracy(hp, "with_bn", state, split, split["image"]) == expected
        running = dataclasses.replace(hp, exact_population=False)
        logits, _ = model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            images,
            train=False,
        )
        expected = jnp.mean(logits.argmax(-1) == split["label"])
        assert (
            mlp.accuracy(running, "with_bn", state, split, split["image"]) == expected
        )

    def test_percentiles_are_those_of_the_normalised_batch(self):
        hp, split = mlp.Hyperparameters(), make_split(examples=500)
        states = mlp.init_states(hp, jax.random.key(0), 16)
        low, high = mlp.input_percentiles(
            hp, "with_bn", states["with_bn"], split["image"], (15.87, 84.13)
        )
        # One standard deviation of a distribution that is nearly normal.
        assert jnp.median(jnp.abs(low + 1)) < 0.1
        assert jnp.median(jnp.abs(high - 1)) < 0.1
