"""Policies in every parallel style against a simulation of workers in NumPy."""

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
from jaxbn import linen, parallel, sync, training
from tests import train_by_policy, workers
from tests.train_by_policy import (
    CHANNELS,
    EVEN,
    EXAMPLES,
    KERNEL,
    UNEVEN,
    WORKERS,
    EveryOther,
    Net,
    NnxNet,
    as_batch,
    assert_equal,
    loss_fn,
    trained,
)

POLICIES = {
    "exact": (None, lambda: workers.Groups(WORKERS)),
    "every other": (EveryOther(), lambda: workers.Periodic(2, WORKERS, "local")),
    "frozen after": (sync.FrozenAfter(4), lambda: workers.FrozenAfter(4, WORKERS)),
    "stale": (sync.Stale(0.8), lambda: workers.Stale(0.8, True)),
    "stale, last step": (sync.Stale(0.0), lambda: workers.Stale(0.0, True)),
    "stale, half": (sync.Stale(backward=0.5), lambda: workers.Stale(0.8, 0.5)),
    "stale, forward": (
        sync.Stale(0.5, backward=False),
        lambda: workers.Stale(0.5, False),
    ),
}
STYLES = ("jit", "shard_map", "shard_map unchecked", "pmap", "vmap")
QUICK = (("jit", "stale, half"), ("shard_map", "stale"), ("shard_map", "every other"))
CASES = [
    pytest.param(
        style, name, marks=() if (style, name) in QUICK else pytest.mark.exhaustive
    )
    for style in STYLES
    for name in POLICIES
    # These two call every method of a `Call` that needs a collective.
    if style in ("jit", "shard_map") or name in ("every other", "stale")
]
STEP = training.make_train_step(loss_fn)
NET = Net(None, sync.Stale())


@functools.cache
def simulated(name, uneven=True):
    batches = UNEVEN if uneven else EVEN
    return workers.train(POLICIES[name][1](), KERNEL, batches)


@pytest.mark.first_case
@pytest.mark.parametrize(("style", "name"), CASES)
def test_uneven_workers(style, name):
    assert_equal(trained(style, POLICIES[name][0], UNEVEN), simulated(name))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["every other", "frozen after", "stale"])
def test_even_workers(name):
    assert_equal(trained("jit", POLICIES[name][0], EVEN), simulated(name, False))


@pytest.mark.parametrize(
    ("name", "axis_name"),
    [
        ("stale", None),
        pytest.param("stale", "d", marks=pytest.mark.exhaustive),
        pytest.param("frozen after", None, marks=pytest.mark.exhaustive),
    ],
)
def test_nnx(name, axis_name):
    made = train_by_policy.nnx_trained(POLICIES[name][0], axis_name)
    assert_equal(made, simulated(name))


def test_a_training_step_by_hand():
    """The functional form needs the four functions that every tree of states has."""
    policy = sync.Stale(0.8)
    ones, zeros = jnp.ones(CHANNELS), jnp.zeros(CHANNELS)
    params = {"kernel": jnp.array(KERNEL), "scale": ones, "bias": zeros}
    stats = sync.for_workers(jaxbn.init_batch_stats(CHANNELS, sync=policy), WORKERS)

    @jax.jit
    def step(params, stats, batch):
        def loss(params, messages):
            y, new = jaxbn.batch_norm_train(
                batch["x"] @ params["kernel"],
                params["scale"],
                params["bias"],
                sync.with_messages(stats, messages),
                mask=batch["mask"][:, None],
                group_size=EXAMPLES,
                sync=policy,
                **train_by_policy.OPTIONS,
            )
            error = jnp.sum((y - batch["target"]) ** 2, -1)
            return 0.5 * jnp.mean(error, where=batch["mask"]), new

        messages = sync.messages_of(stats)
        (value, new), (grads, cotangents) = jax.value_and_grad(
            loss, (0, 1), has_aux=True
        )(params, messages)
        params = jax.tree.map(lambda p, g: p - workers.RATE * g, params, grads)
        return params, sync.exchange(new, cotangents), value

    losses = []
    for arrays in UNEVEN:
        params, stats, value = step(params, stats, as_batch(arrays))
        losses.append(value)
    made = {**params, "mean": stats.mean, "var": stats.var, "losses": np.array(losses)}
    assert_equal(made, simulated("stale"))


def make_state(kind=training.TrainState, **fields):
    state = train_by_policy.make_state(NET, kind, **fields)
    return sync.for_workers(state, WORKERS)


class ScaledState(training.TrainState):
    dynamic_scale: DynamicScale = DynamicScale()


@pytest.mark.exhaustive
@pytest.mark.parametrize("growth", [2, 3])
def test_a_scaled_loss_changes_nothing(growth):
    """The scale may change between sending and receiving."""
    scale = DynamicScale(growth_interval=growth, scale=jnp.float32(64.0))
    scaled, plain = make_state(ScaledState, dynamic_scale=scale), make_state()
    for arrays in UNEVEN:
        scaled, _ = STEP(scaled, as_batch(arrays))
        plain, _ = STEP(plain, as_batch(arrays))
    assert scaled.dynamic_scale.scale > 64
    for name in ("params", "batch_stats", "batch_sync"):
        # Scales are powers of two, so they round nothing.
        chex.assert_trees_all_close(
            getattr(scaled, name), getattr(plain, name), rtol=1e-6, atol=1e-7
        )


@pytest.mark.exhaustive
@pytest.mark.parametrize("through", ["bytes", "orbax"])
def test_checkpoints_keep_the_states(through, tmp_path):
    state = make_state()
    for arrays in UNEVEN[:3]:
        state, _ = STEP(state, as_batch(arrays))
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
    for arrays in UNEVEN[3:6]:
        state, _ = STEP(state, as_batch(arrays))
        restored, _ = STEP(restored, as_batch(arrays))
    chex.assert_trees_all_equal(restored.params, state.params)


def test_a_checkpoint_without_a_policy_has_no_new_entry():
    state = train_by_policy.make_state(Net(None, None))
    assert "batch_sync" not in flax.serialization.to_state_dict(state)


@pytest.mark.exhaustive
def test_several_steps_in_one_call():
    arrays = [as_batch(a) for a in UNEVEN[:4]]
    stacked = {name: np.stack([a[name] for a in arrays]) for name in arrays[0]}
    together, _ = training.make_multi_step(loss_fn)(make_state(), stacked)
    state = make_state()
    for batch in arrays:
        state, _ = STEP(state, batch)
    chex.assert_trees_all_close(together.batch_sync, state.batch_sync, rtol=1e-4)
    chex.assert_trees_all_close(together.params, state.params, rtol=1e-5)


def test_a_step_of_several_passes_is_refused():
    step = training.make_train_step(loss_fn, micro_batches=2)
    with pytest.raises(ValueError, match="`micro_batches` must be 1 where `sync=`"):
        step(make_state(), as_batch(EVEN[0]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_recalibration_is_exact_and_keeps_the_states(api):
    batch = as_batch(EVEN[0])
    if api == "linen":
        state = make_state()
        names = ("params", "batch_stats", "batch_sync")
        model, variables = NET, {name: getattr(state, name) for name in names}
    else:
        model, variables = NnxNet(None, sync.Stale()), None
        flax.nnx.update(model, sync.for_workers(flax.nnx.state(model), WORKERS))
        model.train()

    def call(model, batch):
        return model(batch["x"], True, batch["mask"])

    made = jaxbn.recalibrate(model, variables, [batch], call)
    if variables is None:
        model, stats = made, {"mean": made.norm.mean[...], "var": made.norm.var[...]}
        chex.assert_tree_all_finite(made.norm.batch_stats)
    else:
        variables, stats = made, made["batch_stats"]["norm"]
        chex.assert_trees_all_equal(made["batch_sync"], state.batch_sync)
    h = np.float64(batch["x"]) @ KERNEL
    np.testing.assert_allclose(stats["mean"], h.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], h.var(0, ddof=1), rtol=1e-4)
    found = jaxbn.diagnose(model, variables, batch, call)
    assert found.layers[0].mean_distance < 1e-3


def test_inference_takes_a_state_of_any_policy():
    metrics = training.make_eval_step(loss_fn)(make_state(), as_batch(EVEN[0]))
    assert metrics["loss"].count == WORKERS * EXAMPLES


def all_reduces(layers, axis_name, policy):
    """Counts the all-reduces of a whole training step, compiled for eight devices."""

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            for _ in range(layers):
                layer = linen.BatchNorm(not train, axis_name=axis_name, sync=policy)
                x = nn.relu(layer(nn.Dense(4)(x)))
            return x

    def loss_fn(model, batch, train):
        return {"loss": jnp.sum(model(batch["x"], train) ** 2, -1)}

    net, batch = Deep(), {"x": np.ones((16, 4), np.float32)}
    variables = net.init(jax.random.key(0), batch["x"], False)
    state = training.TrainState.create(net.apply, variables, optax.sgd(0.1))
    step, state = train_by_policy.by_shard_map(
        training.make_train_step(loss_fn, axis_name="d"),
        sync.for_workers(state, WORKERS),
        parallel.data_mesh(axis_name="d"),
        check_vma=False,
    )
    text = step.lower(state, batch).compile().as_text()
    return len(re.findall(r"all-reduce(?:-start)?\(", text))


@pytest.mark.parametrize("layers", [2, pytest.param(5, marks=pytest.mark.exhaustive)])
def test_one_collective_for_all_layers(layers):
    alone = all_reduces(layers, None, None)
    assert alone == 1  # It sums the gradient and the metrics.
    assert all_reduces(layers, "d", sync.Stale()) <= alone + 1
    # Exact synchronisation takes two in each layer.
    assert all_reduces(layers, "d", None) >= alone + 2 * layers


def test_messages_are_exchanged_after_all_gradients():
    """A GPU compiler may otherwise fuse both into one kernel, and a layer waits."""
    state = make_state()
    step = training.value_and_grad(loss_fn)
    made = jax.make_jaxpr(step)(state, as_batch(EVEN[0]))
    both = len(sync.messages_of(state.batch_sync)) + len(jax.tree.leaves(state.params))
    barriers = [
        len(eqn.outvars)
        for eqn in made.eqns
        if eqn.primitive.name == "optimization_barrier"
    ]
    assert barriers == [both]
