import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.networks import inception_training as it

TINY = it.Hyperparameters(modules=("3c",), width=1 / 64, learning_rate=0.1)


class TestRecipes:
    def test_baseline_differs_in_nothing_but_normalisation(self):
        inception, baseline = it.RECIPES["Inception"], it.RECIPES["BN-Baseline"]
        assert dataclasses.replace(inception, batch_norm=True) == baseline
        assert not inception.batch_norm

    def test_bn_x5_has_all_seven_changes(self):
        assert len(it.CHANGES) == 7
        with_bn = it.RECIPES["BN-Baseline"]
        assert it.changed(with_bn) == it.RECIPES["BN-x5"]
        changed = it.Recipe(
            True, "relu", 5.0, 0.0, 1 / 5, 6.0, False, True, it.Recipe().distortion / 4
        )
        assert it.RECIPES["BN-x5"] == changed

    def test_the_others(self):
        x5 = it.RECIPES["BN-x5"]
        assert it.RECIPES["BN-x30"] == dataclasses.replace(x5, learning_rate=30)
        sigmoid = it.RECIPES["BN-x5-Sigmoid"]
        assert sigmoid == dataclasses.replace(x5, activation="sigmoid")
        plain = dataclasses.replace(it.RECIPES["Inception"], activation="sigmoid")
        assert it.RECIPES["Inception-Sigmoid"] == plain
        assert len(it.RECIPES) == 6

    @pytest.mark.parametrize("name", it.CHANGES)
    def test_each_change_is_one_field(self, name):
        old, new = it.Recipe(), it.changed(it.Recipe(), [name])
        differ = [
            field.name
            for field in dataclasses.fields(old)
            if getattr(old, field.name) != getattr(new, field.name)
        ]
        assert differ == list(it.CHANGES[name])

    def test_unknown_change(self):
        with pytest.raises(ValueError, match=r"must be among .*, got 'more'"):
            it.changed(it.Recipe(), ["more"])


class TestOptimizer:
    def test_against_the_formulas(self):
        hp = it.Hyperparameters(
            learning_rate=0.2, sgd_momentum=0.5, final_rate=0.1, l2=0.01
        )
        recipe = it.Recipe(learning_rate=3, l2=0.5, decay=2)
        tx = it.make_optimizer(hp, recipe, steps=10)
        params = {"kernel": jnp.array(2.0), "bias": jnp.array(2.0)}
        state, trace = tx.init(params), {"kernel": 0.0, "bias": 0.0}
        expected = {"kernel": 2.0, "bias": 2.0}
        for step in range(5):
            updates, state = tx.update({name: jnp.array(1.0) for name in params}, state,
                                       params)  # fmt: skip
            params = optax.apply_updates(params, updates)
            rate = 0.2 * 3 * 0.1 ** (2 * step / 10)
            for name, decay in (("kernel", 0.01 * 0.5), ("bias", 0.0)):
                trace[name] = 0.5 * trace[name] + 1 + decay * expected[name]
                expected[name] -= rate * trace[name]
        chex.assert_trees_all_close(params, expected, rtol=1e-5)


class TestDistortions:
    def test_contrast_and_brightness_of_each_image(self):
        x = np.random.default_rng(0).standard_normal((500, 4, 4, 1)).astype(np.float32)
        y = np.asarray(it.distorted(jax.random.key(0), jnp.asarray(x), 0.4))
        # A line through every image's pixels: slope and offset, both uniform.
        slope, offset = np.array(
            [np.polyfit(a.ravel(), b.ravel(), 1) for a, b in zip(x, y, strict=True)]
        ).T
        for values in (slope - 1, offset):
            assert np.abs(values).max() <= 0.4 + 1e-5
            assert abs(values.std() - 0.4 / np.sqrt(3)) < 0.02  # 500 draws: .005.
        assert abs(np.corrcoef(slope, offset)[0, 1]) < 0.2

    def test_none(self):
        x = jnp.ones((2, 3, 3, 1))
        chex.assert_trees_all_equal(it.distorted(jax.random.key(0), x, 0.0), x)


def test_standardizing():
    images = np.array([0, 255], np.uint8)
    assert it.standardizing(images) == (0.5, 0.5)


def data(examples):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(examples, 6, 6, 1), dtype=np.uint8)
    # The label is in the picture: learnt at once by any network that trains.
    labels = rng.integers(2, size=examples)
    return {"image": np.uint8(images // 4 + 150 * labels[:, None, None, None]),
            "label": labels}  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["BN-x5", "Inception", "BN-x5-Sigmoid"])
def test_a_run_learns(name):
    split = jax.tree.map(jnp.asarray, data(64))
    run = it.make_run(name, TINY, it.RECIPES[name], (6, 6, 1), (0.5, 0.3), 100)
    assert run.convolves
    assert run.fixed == (name == "Inception")
    state = jax.jit(run.init)(jax.random.key(0))
    before = run.record(state, split)["loss"]
    step = jax.jit(run.step)
    for _ in range(20):
        state = step(state, split)
    after = run.record(state, split)
    assert after["loss"] < before / 2
    assert set(after) == {"loss", "accuracy"}
    assert bool(state.batch_stats) == (name != "Inception")
