"""A step that overflows changes nothing, whose statistics would have moved."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

from jaxbn import training
from jaxbn.training import _loss_scale
from tests import styles
from tests.training import both_apis
from tests.training.both_apis import APIS, BATCH, Linen, Nnx, loss_fn

P = jax.P


def half(api, scale, **options):
    """Float32 parameters, computed in float16."""
    tx = optax.adam(0.1)
    return api(tx, dynamic_scale=scale, dtype=jnp.float16, **options)


def parts(made):
    """All that must not move."""
    return made.params, made.opt_state, made.batch_stats


def falling(scale):
    """A scale that is too large at 2^30, as float16 ends at 65504, and then 2^10."""
    return DynamicScale(scale=scale, backoff_factor=2.0**-20)


@pytest.mark.first_case
@APIS
@both_apis.PARTS
def test_an_overflowing_step_changes_nothing_and_the_next_proceeds(api, micro_batches):
    step = api.train(loss_fn, micro_batches=micro_batches)
    made = half(api, falling(2.0**30))
    before = parts(made)
    metrics = made.take(step, BATCH)
    chex.assert_trees_all_equal(parts(made), before)
    assert np.isfinite(metrics["loss"].mean)
    assert float(made.dynamic_scale.scale) == 2.0**10
    assert made.step == 1
    expected = half(api, falling(2.0**10))
    same = expected.take(step, BATCH)
    chex.assert_trees_all_equal(same, metrics)  # Without the scale.
    made.take(step, BATCH)
    chex.assert_trees_all_equal(parts(made), parts(expected))
    assert np.all(made.batch_stats["norm"]["mean"] != 0)
    assert int(made.dynamic_scale.fin_steps) == 1
    assert made.step == 2


def test_without_it_the_running_statistics_move():
    """The forward pass is finite, and so are the moments: only the gradient is not."""
    state = Linen(dtype=jnp.float16).state

    def with_scale(model, batch, train):
        return {"loss": 2.0**30 * loss_fn(model, batch, train)["loss"]}

    gradient = jax.jit(lambda s: training.value_and_grad(with_scale)(s, BATCH)[::2])
    grads, batch_stats = gradient(state)
    assert not training.all_finite(grads)
    assert training.all_finite(batch_stats)
    assert np.all(batch_stats["norm"]["mean"] != state.batch_stats["norm"]["mean"])
    kept = training.where_finite(grads, batch_stats, state.batch_stats)
    chex.assert_trees_all_equal(kept, state.batch_stats)


@pytest.mark.first_case
@APIS
def test_a_scaled_step_is_the_step_of_the_loss_itself(api):
    """In float32 a factor that is a power of two changes no digit."""
    scaled, plain = api(dynamic_scale=DynamicScale()), api()
    metrics = [made.take(api.train(loss_fn), BATCH) for made in (scaled, plain)]
    chex.assert_trees_all_equal(*metrics)
    chex.assert_trees_all_equal(parts(scaled), parts(plain))


def test_the_scale_moves_as_in_flax():
    scale = expected = DynamicScale(growth_interval=2, scale=8.0)
    after_step = jax.jit(_loss_scale.after_step)
    for number in (1.0, 1.0, 1.0, np.nan, 1.0, np.inf, np.inf, 1.0):
        expected = expected.value_and_grad(lambda x, n=number: x * n)(1.0)[0]
        scale = after_step(scale, {"a": jnp.array([1.0, number])})
        assert float(scale.scale) == float(expected.scale)
        assert int(scale.fin_steps) == int(expected.fin_steps)


@pytest.mark.first_case
@APIS
def test_several_steps_in_one_call(api):
    made, single = (half(api, falling(2.0**30)) for _ in range(2))
    made.take(api.multi(loss_fn), both_apis.stacked(BATCH, 3))
    step = api.train(loss_fn)
    for _ in range(3):
        single.take(step, BATCH)
    # Both are rounded to float16, at other places.
    chex.assert_trees_all_close(parts(made), parts(single), rtol=1e-2, atol=1e-3)
    assert int(made.dynamic_scale.fin_steps) == 2
    assert made.step == 3


@APIS
def test_compiles_once(api):
    chex.clear_trace_counter()
    step = api.train(chex.assert_max_traces(loss_fn, n=1))
    made = api(dynamic_scale=DynamicScale())
    for _ in range(3):
        made.take(step, BATCH)


@pytest.mark.first_case
@APIS
@pytest.mark.parametrize("style", styles.every(("shard_map", "vmap"), ("shard_map",)))
def test_one_device_that_overflows_stops_all(api, style):
    """The statistics of all devices stay, bit for bit."""
    broken = BATCH["x"].copy()
    broken[:4, 0] = np.nan  # On the first device only.
    for x, moves in ((broken, False), (BATCH["x"], True)):
        made = half(api, DynamicScale(), axis_name="d")
        before = parts(made)
        both_apis.over_devices(made, style, BATCH | {"x": x})
        scale = np.ravel(made.dynamic_scale.scale)[0]  # One per device in a vmap.
        assert scale == (2.0**16 if moves else 2.0**15)
        if moves:
            assert np.all(made.batch_stats["norm"]["mean"] != 0)
        else:
            chex.assert_trees_all_equal(parts(made), before)


def test_an_nnx_optimiser_with_another_kind_of_scale():
    made = Nnx()
    made.optimizer.dynamic_scale = nnx.Variable(DynamicScale())
    with pytest.raises(TypeError, match=r"must be a `jaxbn.training.LossScale`, got V"):
        made.take(training.make_nnx_train_step(loss_fn), BATCH)


class TestWhereFinite:
    @pytest.mark.first_case
    @pytest.mark.parametrize("style", ["vmap", "shard_map", "pmap"])
    def test_devices_agree(self, style):
        grads = np.ones((4, 2), np.float32)
        grads[2, 1] = np.inf

        def choose(grads):
            new = {"a": jnp.ones(3), "b": jnp.arange(2)}
            old = {"a": jnp.zeros(3), "b": jnp.arange(2) + 5}
            return training.where_finite(grads, new, old, axis_name="d")

        if style == "shard_map":
            auto = (jax.sharding.AxisType.Auto,)
            mesh = jax.make_mesh((4,), ("d",), axis_types=auto)
            specs = {"in_specs": P("d"), "out_specs": P()}
            run = jax.jit(jax.shard_map(choose, mesh=mesh, **specs))
        else:
            mapped = {"vmap": jax.vmap, "pmap": jax.pmap}[style](choose, axis_name="d")
            run = lambda grads: both_apis.first(mapped(grads))  # noqa: E731
        kept = {"a": np.zeros(3), "b": np.arange(2) + 5}
        chex.assert_trees_all_equal(run(grads), kept)
        new = {"a": np.ones(3), "b": np.arange(2)}
        chex.assert_trees_all_equal(run(np.ones_like(grads)), new)

    def test_a_whole_state_with_its_key(self):
        """A step by hand may select whole states, as with `optax.apply_if_finite`."""

        @jax.jit
        def step(state, batch):
            gradient = training.value_and_grad(loss_fn)(state, batch)
            new = gradient.applied_to(state)
            return training.where_finite(gradient.grads, new, state)

        state = Linen().state
        broken = BATCH | {"x": np.where(np.arange(4) == 1, np.inf, BATCH["x"])}
        chex.assert_trees_all_equal(step(state, broken), state)
        assert int(step(state, BATCH).step) == 1

    def test_apply_if_finite_of_optax_keeps_no_statistics(self):
        """It checks the gradient, not the results of the forward pass."""
        state = Linen(optax.apply_if_finite(optax.sgd(0.1), 5)).state
        grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), state.params)
        stats = jax.tree.map(lambda s: s + 1, state.batch_stats)
        new = state.apply_gradients(grads=grads, batch_stats=stats)
        chex.assert_trees_all_equal(new.params, state.params)
        chex.assert_trees_all_equal(new.batch_stats, stats)
        kept = training.where_finite(grads, new.batch_stats, state.batch_stats)
        chex.assert_trees_all_equal(kept, state.batch_stats)

    def test_states_of_nnx(self):
        """A step by hand compares the states before and after it."""
        made = Nnx(optax.adam(0.1), dtype=jnp.float16)
        both = made.model, made.optimizer

        @nnx.jit
        def step(model, optimizer, scale):
            def loss(model):
                return scale * jnp.mean(loss_fn(model, BATCH, True)["loss"])

            old = nnx.clone(nnx.state((model, optimizer)))
            grads = jax.tree.map(lambda g: g / scale, nnx.grad(loss)(model))
            optimizer.update(model, grads)
            new = nnx.state((model, optimizer))
            nnx.update((model, optimizer), training.where_finite(grads, new, old))

        before = nnx.clone(nnx.state(both))
        step(*both, 2.0**30)
        chex.assert_trees_all_equal(nnx.state(both), before)
        step(*both, 2.0**10)
        assert np.all(made.batch_stats["norm"]["mean"] != 0)
        assert training.all_finite(nnx.state(made.model))
        assert made.step == 1


def test_integers_and_keys_are_finite():
    assert training.all_finite({"i": jnp.arange(3), "b": True, "x": 1.0})
    assert training.all_finite(jax.random.key(0))
    assert not training.all_finite(jnp.array([1j, complex(0, np.inf)]))
    assert training.all_finite({})
