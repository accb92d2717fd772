"""Every policy in every parallel style equals a simulation of workers in NumPy."""

import functools
import re

import chex
import flax.linen as nn
import flax.nnx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax.training.dynamic_scale import DynamicScale

import jaxbn
from jaxbn import linen, nnx, nnx_variables, parallel, sync_policies, training
from tests import workers

P = jax.P
WORKERS, EXAMPLES, FEATURES, CHANNELS, STEPS = 8, 4, 5, 3, 10
RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((FEATURES, CHANNELS)).astype(np.float32)


def batches(uneven):
    """Workers with means of their own; where uneven, some are empty at times."""
    shift = 0.5 * RNG.standard_normal((WORKERS, 1, FEATURES))
    for step in range(STEPS):
        x = RNG.standard_normal((WORKERS, EXAMPLES, FEATURES)) + shift
        target = RNG.standard_normal((WORKERS, EXAMPLES, CHANNELS))
        mask = np.ones((WORKERS, EXAMPLES), bool)
        if uneven:
            mask = RNG.random((WORKERS, EXAMPLES)) < 0.7
            mask[step % WORKERS] = False
        yield x.astype(np.float32), target.astype(np.float32), mask


BATCHES = {uneven: list(batches(uneven)) for uneven in (False, True)}
POLICIES = {
    "exact": (sync_policies.Exact(), lambda: workers.Groups(WORKERS)),
    "group": (sync_policies.Group(2), lambda: workers.Groups(2)),
    "local": (sync_policies.Local(), lambda: workers.Groups(1)),
    "sampled": (sync_policies.Sampled(0.5), lambda: workers.Groups(WORKERS, 0.5)),
    "periodic": (
        sync_policies.Periodic(3),
        lambda: workers.Periodic(3, WORKERS, "local"),
    ),
    "periodic, frozen": (
        sync_policies.Periodic(3, "frozen"),
        lambda: workers.Periodic(3, WORKERS, "frozen"),
    ),
    "frozen after": (
        sync_policies.FrozenAfter(4),
        lambda: workers.FrozenAfter(4, WORKERS),
    ),
    "stale": (sync_policies.Stale(0.8), lambda: workers.Stale(0.8, True)),
    "stale, last step": (sync_policies.Stale(0.0), lambda: workers.Stale(0.0, True)),
    "stale, half": (
        sync_policies.Stale(0.8, backward=0.5),
        lambda: workers.Stale(0.8, 0.5),
    ),
    "stale, forward": (
        sync_policies.Stale(0.5, backward=False),
        lambda: workers.Stale(0.5, False),
    ),
}
OPTIONS = {"momentum": workers.MOMENTUM, "epsilon": workers.EPSILON}


class Net(nn.Module):
    axis_name: str | None
    sync: sync_policies.Policy

    @nn.compact
    def __call__(self, x, train, mask):
        group_size = EXAMPLES if self.axis_name is None else None
        kernel = self.param("kernel", lambda _: jnp.array(KERNEL))
        layer = linen.BatchNorm(
            use_running_average=not train,
            axis_name=self.axis_name,
            group_size=group_size,
            sync=self.sync,
            **OPTIONS,
        )
        return layer(x @ kernel, mask=mask[:, None])


class NnxNet(flax.nnx.Module):
    def __init__(self, axis_name, sync):
        group_size = EXAMPLES if axis_name is None else None
        self.kernel = flax.nnx.Param(jnp.array(KERNEL))
        self.norm = nnx.BatchNorm(
            CHANNELS,
            axis_name=axis_name,
            group_size=group_size,
            sync=sync,
            rngs=flax.nnx.Rngs(0),
            **OPTIONS,
        )

    def __call__(self, x, train, mask):
        return self.norm(x @ self.kernel[...], mask=mask[:, None])


def loss_fn(model, batch, train):
    y = model(batch["x"], train, batch["mask"])
    return {"loss": 0.5 * jnp.sum((y - batch["target"]) ** 2, -1)}


def as_batch(arrays, apart):
    batch = dict(zip(("x", "target", "mask"), arrays, strict=True))
    if apart:
        return batch
    return {name: a.reshape(-1, *a.shape[2:]) for name, a in batch.items()}


def trained(style, policy, uneven):
    """Kernel, scale, bias, mean, var and the losses, as NumPy has them."""
    axis_name = None if style == "jit" else "d"
    net = Net(axis_name, policy)
    x, _, mask = as_batch(BATCHES[uneven][0], apart=False).values()
    variables = net.init(jax.random.key(0), x, False, mask)
    state = training.TrainState.create(net.apply, variables, optax.sgd(workers.RATE))
    step = training.make_train_step(loss_fn, axis_name=axis_name)
    stacked = style in ("pmap", "vmap")
    if stacked:
        step = {"pmap": jax.pmap, "vmap": jax.vmap}[style](step, axis_name="d")
        state = jax.tree.map(lambda leaf: jnp.stack([leaf] * WORKERS), state)
    else:
        state = sync_policies.for_workers(state, WORKERS)
    if style.startswith("shard_map"):
        specs = sync_policies.partition_specs(state, "d")
        mesh = parallel.data_mesh(axis_name="d")
        # As the first step returns it, for which the second would be compiled again.
        state = jax.tree.map(
            lambda leaf, spec: jax.device_put(leaf, jax.NamedSharding(mesh, spec)),
            state,
            specs,
        )
        step = jax.jit(
            jax.shard_map(
                step,
                mesh=mesh,
                in_specs=(specs, P("d")),
                out_specs=(specs, P()),
                check_vma=style == "shard_map",
            )
        )
    losses = []
    for arrays in BATCHES[uneven]:
        state, metrics = step(state, as_batch(arrays, apart=stacked))
        losses.append(np.ravel(metrics["loss"].mean)[0])
    made = {**state.batch_stats["BatchNorm_0"], **state.params["BatchNorm_0"]}
    made["kernel"] = state.params["kernel"]
    if stacked:
        made = {name: leaf[0] for name, leaf in made.items()}
    return {**made, "losses": np.array(losses)}


def assert_equal(made, reference):
    """To the rounding of ten steps in float32, whose gradients are some 0.1."""
    for name, value in made.items():
        expected = np.asarray(getattr(reference, name))
        np.testing.assert_allclose(value, expected, rtol=2e-4, atol=2e-5, err_msg=name)


@functools.cache
def simulated(name, uneven):
    return workers.train(POLICIES[name][1](), KERNEL, BATCHES[uneven])


STYLES = ("jit", "shard_map", "shard_map unchecked", "pmap", "vmap")
QUICK = (("jit", "stale, half"), ("shard_map", "stale"), ("shard_map", "periodic"))
CASES = [
    pytest.param(
        style, name, marks=() if (style, name) in QUICK else pytest.mark.exhaustive
    )
    for style in STYLES
    for name in POLICIES
    # The others share all of their ways through a style with one of these.
    if style in ("jit", "shard_map") or name in ("exact", "group", "periodic", "stale")
]


@pytest.mark.parametrize(("style", "name"), CASES)
def test_uneven_workers(style, name):
    assert_equal(trained(style, POLICIES[name][0], True), simulated(name, True))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", list(POLICIES))
def test_even_workers(name):
    assert_equal(trained("jit", POLICIES[name][0], False), simulated(name, False))


@pytest.mark.parametrize(
    "name",
    [
        name if name == "stale" else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in POLICIES
    ],
)
def test_nnx(name):
    assert_equal(nnx_trained(POLICIES[name][0], None), simulated(name, True))


@pytest.mark.exhaustive
def test_nnx_on_devices():
    made = nnx_trained(POLICIES["stale"][0], "d")
    assert_equal(made, simulated("stale", True))


def nnx_trained(policy, axis_name):
    """Returns what `trained` returns; `axis_name` runs it under `nnx.shard_map`."""
    net = NnxNet(axis_name, policy)
    flax.nnx.update(net, sync_policies.for_workers(flax.nnx.state(net), WORKERS))
    optimizer = flax.nnx.Optimizer(net, optax.sgd(workers.RATE), wrt=flax.nnx.Param)
    step = training.make_nnx_train_step(loss_fn, axis_name=axis_name)
    if axis_name is not None:
        of_each = {nnx_variables.OwnBatchSync: P("d"), ...: P()}
        step = flax.nnx.shard_map(
            step,
            mesh=parallel.data_mesh(axis_name="d"),
            in_specs=(flax.nnx.StateSharding(of_each), P(), P("d")),
            out_specs=P(),
        )
    losses = []
    for arrays in BATCHES[True]:
        metrics = step(net, optimizer, as_batch(arrays, apart=False))
        losses.append(metrics["loss"].mean)
    norm = net.norm
    return {
        "kernel": net.kernel[...],
        "scale": norm.scale[...],
        "bias": norm.bias[...],
        "mean": norm.mean[...],
        "var": norm.var[...],
        "losses": np.array(losses),
    }


def test_the_function_with_steps_by_hand():
    """A training loop by hand does the work of `make_train_step`."""
    policy, _ = POLICIES["stale"]
    params = {
        "kernel": jnp.array(KERNEL),
        "scale": jnp.ones(CHANNELS),
        "bias": jnp.zeros(CHANNELS),
    }
    stats = jaxbn.init_batch_stats(CHANNELS)
    fresh = {"batch_sync": {"norm": policy.init((CHANNELS,), jnp.dtype("float32"))}}
    states = sync_policies.for_workers(fresh, WORKERS)["batch_sync"]

    @jax.jit
    def step(params, stats, states, batch):
        def loss(params, said):
            given = sync_policies.with_said(states, said)
            y, new = jaxbn.batch_norm_train(
                batch["x"] @ params["kernel"],
                params["scale"],
                params["bias"],
                sync_policies.WithSync(stats, given["norm"]),
                mask=batch["mask"][:, None],
                group_size=EXAMPLES,
                sync=policy,
                **OPTIONS,
            )
            error = jnp.sum((y - batch["target"]) ** 2, -1)
            return 0.5 * jnp.mean(error, where=batch["mask"]), new

        said = sync_policies.said_of(states)
        (value, new), (grads, said) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            params, said
        )
        states = sync_policies.exchange({"norm": new.sync}, said)
        params = jax.tree.map(lambda p, g: p - workers.RATE * g, params, grads)
        return params, new.batch_stats, states, value

    losses = []
    for arrays in BATCHES[True]:
        batch = as_batch(arrays, apart=False)
        params, stats, states, value = step(params, stats, states, batch)
        losses.append(value)
    made = {**params, **stats._asdict(), "losses": np.array(losses)}
    assert_equal(made, simulated("stale", True))


def make_state(kind=training.TrainState, **fields):
    net = Net(None, sync_policies.Stale())
    x, _, mask = as_batch(BATCHES[False][0], apart=False).values()
    variables = net.init(jax.random.key(0), x, False, mask)
    state = kind.create(net.apply, variables, optax.sgd(workers.RATE), **fields)
    return sync_policies.for_workers(state, WORKERS)


class ScaledState(training.TrainState):
    dynamic_scale: DynamicScale = DynamicScale()


@pytest.mark.exhaustive
@pytest.mark.parametrize("growth", [2, 3])
def test_a_scaled_loss_changes_nothing(growth):
    """It also holds where the scale changes after the other devices sent their sums."""
    scale = DynamicScale(growth_interval=growth, scale=jnp.float32(64.0))
    scaled = make_state(ScaledState, dynamic_scale=scale)
    plain, step = make_state(), training.make_train_step(loss_fn)
    for arrays in BATCHES[True]:
        batch = as_batch(arrays, apart=False)
        scaled, _ = step(scaled, batch)
        plain, _ = step(plain, batch)
    assert scaled.dynamic_scale.scale > 64
    for name in ("params", "batch_stats", "batch_sync"):
        # Scales are powers of two: nothing is rounded by them.
        chex.assert_trees_all_close(
            getattr(scaled, name), getattr(plain, name), rtol=1e-6, atol=1e-7
        )


@pytest.mark.exhaustive
@pytest.mark.parametrize("through", ["bytes", "orbax"])
def test_restored_with_the_rest(through, tmp_path):
    step = training.make_train_step(loss_fn)
    batches = [as_batch(arrays, apart=False) for arrays in BATCHES[True]]
    state = make_state()
    for batch in batches[:3]:
        state, _ = step(state, batch)
    if through == "bytes":
        saved = flax.serialization.to_bytes(state)
        restored = flax.serialization.from_bytes(make_state(), saved)
    else:
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", state)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "state", make_state())
    restored = jax.tree.map(jnp.asarray, restored)
    chex.assert_trees_all_equal(restored.batch_sync, state.batch_sync)
    for batch in batches[3:6]:
        state, _ = step(state, batch)
        restored, _ = step(restored, batch)
    chex.assert_trees_all_equal(restored.params, state.params)


def test_states_without_a_policy_are_saved_as_before():
    net = nn.Dense(2)
    variables = net.init(jax.random.key(0), np.ones((1, 2)))
    state = training.TrainState.create(net.apply, variables, optax.sgd(0.1))
    assert "batch_sync" not in flax.serialization.to_state_dict(state)


@pytest.mark.exhaustive
def test_several_steps_in_one_call():
    arrays = [as_batch(a, apart=False) for a in BATCHES[True][:4]]
    stacked = {name: np.stack([a[name] for a in arrays]) for name in arrays[0]}
    together, _ = training.make_multi_step(loss_fn)(make_state(), stacked)
    state, step = make_state(), training.make_train_step(loss_fn)
    for batch in arrays:
        state, _ = step(state, batch)
    chex.assert_trees_all_close(together.batch_sync, state.batch_sync, rtol=1e-4)
    chex.assert_trees_all_close(together.params, state.params, rtol=1e-5)


def test_parts_of_a_batch_are_no_steps():
    step = training.make_train_step(loss_fn, micro_batches=2)
    with pytest.raises(ValueError, match="`micro_batches` must be 1 where `sync=`"):
        step(make_state(), as_batch(BATCHES[False][0], apart=False))


@pytest.mark.exhaustive
def test_population_statistics_are_those_of_exact_passes():
    state, batch = make_state(), as_batch(BATCHES[False][0], apart=False)
    variables = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "batch_sync": state.batch_sync,
    }

    def call(model, batch):
        return model(batch["x"], True, batch["mask"])

    made = jaxbn.recalibrate(Net(None, sync_policies.Stale()), variables, [batch], call)
    h = np.float64(batch["x"]) @ KERNEL
    stats = made["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], h.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], h.var(0, ddof=1), rtol=1e-4)
    chex.assert_trees_all_equal(made["batch_sync"], state.batch_sync)
    found = jaxbn.diagnose(Net(None, sync_policies.Stale()), made, batch, call)
    assert found.layers[0].mean_distance < 1e-3


@pytest.mark.exhaustive
def test_population_statistics_of_an_nnx_model():
    net = NnxNet(None, sync_policies.Stale())
    flax.nnx.update(net, sync_policies.for_workers(flax.nnx.state(net), WORKERS))
    batch = as_batch(BATCHES[False][0], apart=False)

    def call(model, batch):
        return model(batch["x"], True, batch["mask"])

    net.train()
    made = jaxbn.recalibrate(net, None, [batch], call)
    h = np.float64(batch["x"]) @ KERNEL
    np.testing.assert_allclose(made.norm.mean[...], h.mean(0), rtol=1e-4, atol=1e-5)
    assert jaxbn.diagnose(made, None, batch, call).layers[0].mean_distance < 1e-3


def test_inference_needs_no_state():
    state, batch = make_state(), as_batch(BATCHES[False][0], apart=False)
    metrics = training.make_eval_step(loss_fn)(state, batch)
    assert metrics["loss"].count == WORKERS * EXAMPLES


@pytest.mark.parametrize("layers", [2, 5])
def test_one_collective_for_all_layers(layers):
    """However many layers: one more all-reduce than with no synchronisation at all."""
    numbers = {}
    for name, policy in (
        ("stale", sync_policies.Stale()),
        ("exact", sync_policies.Exact()),
    ):
        numbers[name] = all_reduces(layers, policy)
    alone = all_reduces(layers, None)
    assert alone == 1  # That of the gradient.
    assert numbers["stale"] <= alone + 1
    assert numbers["exact"] >= alone + 2 * layers


def test_messages_are_exchanged_after_all_gradients():
    """A GPU compiler may otherwise use one kernel for both, so that a layer waits."""
    state, batch = make_state(), as_batch(BATCHES[False][0], apart=False)
    made = jax.make_jaxpr(training.value_and_grad(loss_fn))(state, batch)
    said = jax.tree.leaves(sync_policies.said_of(state.batch_sync))
    both = len(said) + len(jax.tree.leaves(state.params))
    barriers = [
        eqn for eqn in made.eqns if eqn.primitive.name == "optimization_barrier"
    ]
    assert [len(eqn.outvars) for eqn in barriers] == [both]


def all_reduces(layers, policy):
    """Counts the all-reduces of a whole training step, compiled for eight devices."""

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            for _ in range(layers):
                layer = linen.BatchNorm(
                    use_running_average=not train,
                    axis_name=None if policy is None else "d",
                    sync=policy,
                )
                x = nn.relu(layer(nn.Dense(4)(x)))
            return x

    def loss_fn(model, batch, train):
        return {"loss": jnp.sum(model(batch["x"], train) ** 2, -1)}

    net = Deep()
    batch = {"x": np.ones((16, 4), np.float32)}
    variables = net.init(jax.random.key(0), batch["x"], False)
    state = training.TrainState.create(net.apply, variables, optax.sgd(0.1))
    state = sync_policies.for_workers(state, WORKERS)
    specs = sync_policies.partition_specs(state, "d")
    step = jax.jit(
        jax.shard_map(
            training.make_train_step(loss_fn, axis_name="d"),
            mesh=parallel.data_mesh(axis_name="d"),
            in_specs=(specs, P("d")),
            out_specs=(specs, P()),
            check_vma=False,
        )
    )
    text = step.lower(state, batch).compile().as_text()
    return len(re.findall(r"all-reduce(?:-start)?\(", text))
