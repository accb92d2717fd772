"""A step that overflows changes nothing, whose statistics would have moved."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

import jaxbn.nnx
from jaxbn import linen, training
from jaxbn.training import finite

P = jax.P
RNG = np.random.default_rng(0)
BATCH = {
    "x": (1 + RNG.standard_normal((16, 4))).astype(np.float32),
    "y": RNG.integers(3, size=16),
}


class Half(nn.Module):
    """Float32 parameters, computed in float16."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        norm = linen.BatchNorm(
            dtype=jnp.float16, momentum=0.5, axis_name=self.axis_name
        )
        x = norm(nn.Dense(8, dtype=jnp.float16)(x), use_running_average=not train)
        return nn.Dense(3, dtype=jnp.float16)(nn.relu(x))


def loss_fn(model, batch, train):
    logits = model(batch["x"], train=train).astype(jnp.float32)
    return {"loss": optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])}


class State(training.TrainState):
    dynamic_scale: DynamicScale = DynamicScale()


def make(cls=State, net=None, **fields):
    net = net or Half()
    variables = Half().init(jax.random.key(0), BATCH["x"], train=False)
    return cls.create(net.apply, variables, optax.adam(0.1), **fields)


def parts(state):
    """Copies of all that must not move; the state itself is donated."""
    kept = state.params, state.opt_state, state.batch_stats
    return jax.tree.map(np.array, kept)


def falling(scale):
    """A scale that is too large at 2^30, as float16 ends at 65504, and then 2^10."""
    return DynamicScale(scale=scale, backoff_factor=2.0**-20)


@pytest.mark.parametrize(
    "micro_batches", [1, pytest.param(2, marks=pytest.mark.exhaustive)]
)
def test_an_overflowing_step_changes_nothing_and_the_next_proceeds(micro_batches):
    step = training.make_train_step(loss_fn, micro_batches=micro_batches)
    state = make(dynamic_scale=falling(2.0**30))
    before = parts(state)
    state, metrics = step(state, BATCH)
    chex.assert_trees_all_equal(parts(state), before)
    assert np.isfinite(metrics["loss"].mean)
    assert float(state.dynamic_scale.scale) == 2.0**10
    assert int(state.step) == 1
    expected, same = step(make(dynamic_scale=falling(2.0**10)), BATCH)
    chex.assert_trees_all_equal(same, metrics)  # Without the scale.
    state, _ = step(state, BATCH)
    chex.assert_trees_all_equal(parts(state), parts(expected))
    assert np.all(state.batch_stats["BatchNorm_0"]["mean"] != 0)
    assert int(state.dynamic_scale.fin_steps) == 1
    assert int(state.step) == 2


def test_without_it_the_running_statistics_move():
    """The forward pass is finite, and so are the moments: only the gradient is not."""
    state = make()

    def with_scale(model, batch, train):
        return {"loss": 2.0**30 * loss_fn(model, batch, train)["loss"]}

    gradient = jax.jit(lambda s: training.value_and_grad(with_scale)(s, BATCH)[::2])
    grads, batch_stats = gradient(state)
    assert not finite.all_finite(grads)
    assert finite.all_finite(batch_stats)
    moved = batch_stats["BatchNorm_0"]["mean"]
    assert np.all(moved != state.batch_stats["BatchNorm_0"]["mean"])
    kept = finite.where_finite(grads, batch_stats, state.batch_stats)
    chex.assert_trees_all_equal(kept, state.batch_stats)


def test_a_scaled_step_is_the_step_of_the_loss_itself():
    """In float32 a factor that is a power of two changes no digit."""

    class Full(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(3)(linen.BatchNorm()(x, use_running_average=not train))

    variables = Full().init(jax.random.key(0), BATCH["x"], train=False)
    made = []
    for cls in (State, training.TrainState):
        state = cls.create(Full().apply, variables, optax.adam(0.1))
        made.append(training.make_train_step(loss_fn)(state, BATCH))
    (scaled, metrics), (plain, expected) = made
    chex.assert_trees_all_equal(metrics, expected)
    chex.assert_trees_all_equal(parts(scaled), parts(plain))


def test_the_scale_moves_as_in_flax():
    scale, state = DynamicScale(growth_interval=2, scale=8.0), make()
    step = jax.jit(finite.after_scaled_step)
    expected = scale
    state = state.replace(dynamic_scale=scale)
    for number in (1.0, 1.0, 1.0, np.nan, 1.0, np.inf, np.inf, 1.0):
        grads = {"a": jnp.array([1.0, number])}
        expected = expected.value_and_grad(lambda x, n=number: x * n)(1.0)[0]
        state = step(grads, state, state)
        assert float(state.dynamic_scale.scale) == float(expected.scale)
        assert int(state.dynamic_scale.fin_steps) == int(expected.fin_steps)


@pytest.mark.exhaustive
def test_several_steps_in_one_call():
    batches = {name: np.stack([array] * 3) for name, array in BATCH.items()}
    start = falling(2.0**30)
    state, _ = training.make_multi_step(loss_fn)(make(dynamic_scale=start), batches)
    single, expected = training.make_train_step(loss_fn), make(dynamic_scale=start)
    for _ in range(3):
        expected, _ = single(expected, BATCH)
    chex.assert_trees_all_close(parts(state), parts(expected), rtol=1e-2, atol=1e-3)
    assert int(state.dynamic_scale.fin_steps) == 2


def test_compiled_once():
    chex.clear_trace_counter()
    step = training.make_train_step(chex.assert_max_traces(loss_fn, n=1))
    state = make()
    for _ in range(3):
        state, _ = step(state, BATCH)


@pytest.mark.parametrize(
    "style", ["shard_map", pytest.param("vmap", marks=pytest.mark.exhaustive)]
)
def test_one_device_that_overflows_stops_all(style):
    """The statistics of all devices stay, bit for bit."""
    x = BATCH["x"].copy()
    x[:4, 0] = np.nan  # Of the first device only; the layers leave the channel out.
    net = Half(axis_name="d")
    step = training.make_train_step(loss_fn, axis_name="d")
    for data, moves in ((x, False), (BATCH["x"], True)):
        batch = {"x": data, "y": BATCH["y"]}
        state = make(net=net)
        before = parts(state)
        if style == "vmap":
            split = {k: v.reshape(4, 4, *v.shape[1:]) for k, v in batch.items()}
            state, _ = jax.vmap(step, (None, 0), axis_name="d")(state, split)
            state = jax.tree.map(lambda leaf: leaf[2], state)
        else:
            mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
            mapped = jax.shard_map(
                step, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P(), P())
            )
            state, _ = jax.jit(mapped)(state, batch)
        assert float(state.dynamic_scale.scale) == (2.0**16 if moves else 2.0**15)
        if moves:
            assert np.all(state.batch_stats["BatchNorm_0"]["mean"] != 0)
        else:
            chex.assert_trees_all_equal(parts(state), before)


@pytest.mark.parametrize("style", ["vmap", "shard_map", "pmap"])
def test_devices_agree(style):
    grads = np.ones((4, 2), np.float32)
    grads[2, 1] = np.inf

    def choose(grads):
        new = {"a": jnp.ones(3), "b": jnp.arange(2)}
        old = {"a": jnp.zeros(3), "b": jnp.arange(2) + 5}
        return finite.where_finite(grads, new, old, axis_name="d")

    if style == "shard_map":
        mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        run = jax.jit(jax.shard_map(choose, mesh=mesh, in_specs=P("d"), out_specs=P()))
        kept = {"a": np.zeros(3), "b": np.arange(2) + 5}
        new = {"a": np.ones(3), "b": np.arange(2)}
    else:
        run = {"vmap": jax.vmap, "pmap": jax.pmap}[style](choose, axis_name="d")
        kept = {"a": np.zeros((4, 3)), "b": np.tile(np.arange(2) + 5, (4, 1))}
        new = {"a": np.ones((4, 3)), "b": np.tile(np.arange(2), (4, 1))}
    chex.assert_trees_all_equal(run(grads), kept)
    chex.assert_trees_all_equal(run(np.ones_like(grads)), new)


def test_a_whole_state_with_its_key():
    """A step by hand may select whole states, such as with `optax.apply_if_finite`."""

    @jax.jit
    def step(state, batch):
        gradient = training.value_and_grad(loss_fn)(state, batch)
        return finite.where_finite(gradient.grads, gradient.applied_to(state), state)

    state = make(training.TrainState)
    broken = {**BATCH, "x": np.where(np.arange(4) == 1, np.inf, BATCH["x"])}
    same = step(state, broken)
    chex.assert_trees_all_equal(same, state)
    assert int(step(state, BATCH).step) == 1


def test_apply_if_finite_of_optax_keeps_no_statistics():
    """It checks the gradient, not the results of the forward pass."""
    tx = optax.apply_if_finite(optax.sgd(0.1), 5)
    variables = Half().init(jax.random.key(0), BATCH["x"], train=False)
    state = training.TrainState.create(Half().apply, variables, tx)
    grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), state.params)
    stats = jax.tree.map(lambda s: s + 1, state.batch_stats)
    new = state.apply_gradients(grads=grads, batch_stats=stats)
    chex.assert_trees_all_equal(new.params, state.params)
    kept = finite.where_finite(grads, new.batch_stats, state.batch_stats)
    chex.assert_trees_all_equal(kept, state.batch_stats)
    chex.assert_trees_all_equal(new.batch_stats, stats)


class HalfModel(nnx.Module):
    def __init__(self):
        rngs, options = nnx.Rngs(0), {"dtype": jnp.float16}
        self.first = nnx.Linear(4, 8, rngs=rngs, **options)
        self.norm = jaxbn.nnx.BatchNorm(8, rngs=rngs, **options)
        self.last = nnx.Linear(8, 3, rngs=rngs, **options)

    def __call__(self, x, train):
        return self.last(nnx.relu(self.norm(self.first(x))))


def test_states_of_nnx():
    """A step by hand compares the states of model and optimiser before and after it."""
    model = HalfModel()
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch, scale):
        def loss(model):
            return scale * jnp.mean(loss_fn(model, batch, True)["loss"])

        old = nnx.clone(nnx.state((model, optimizer)))
        grads = jax.tree.map(lambda g: g / scale, nnx.grad(loss)(model))
        optimizer.update(model, grads)
        kept = finite.where_finite(grads, nnx.state((model, optimizer)), old)
        nnx.update((model, optimizer), kept)

    before = jax.tree.map(np.array, nnx.state((model, optimizer)))
    step(model, optimizer, BATCH, 2.0**30)
    chex.assert_trees_all_equal(nnx.state((model, optimizer)), before)
    step(model, optimizer, BATCH, 2.0**10)
    after = nnx.state(model)
    assert np.all(after["norm"]["mean"][...] != 0)
    assert finite.all_finite(after)
    assert int(optimizer.step[...]) == 1


def test_integers_and_keys_are_finite():
    assert finite.all_finite({"i": jnp.arange(3), "b": True, "x": 1.0})
    assert finite.all_finite(jax.random.key(0))
    assert not finite.all_finite(jnp.array([1j, complex(0, np.inf)]))
    assert finite.all_finite({})
