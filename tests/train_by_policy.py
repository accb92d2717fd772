"""Trains a small network by a policy, as `workers` simulates it in NumPy."""

import dataclasses

import flax.linen as nn
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbn import linen, nnx, parallel, sync, training
from tests import workers

P = jax.P
WORKERS, EXAMPLES, FEATURES, CHANNELS, STEPS = 8, 4, 5, 3, 10
RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((FEATURES, CHANNELS)).astype(np.float32)
OPTIONS = {"momentum": workers.MOMENTUM, "epsilon": workers.EPSILON}
TX = optax.sgd(workers.RATE)


@dataclasses.dataclass(frozen=True)
class EveryOther:
    """A user's policy: exact in every other step, each worker alone in between."""

    def init(self, shape, dtype):
        return {"step": jnp.zeros((), jnp.int32)}

    def normalize(self, call, state):
        y, moments = jax.lax.cond(
            state["step"] % 2 == 0,
            call.by_all,
            lambda: (call.by_groups(1)[0], call.no_moments()),
        )
        return sync.Normalized(y, moments, {"step": state["step"] + 1})


def batches(uneven):
    """Yields (x, target, mask) of workers whose means differ.

    If `uneven`, examples are missing, and in each step one worker is empty.
    """
    shift = 0.5 * RNG.standard_normal((WORKERS, 1, FEATURES))
    for step in range(STEPS):
        x = RNG.standard_normal((WORKERS, EXAMPLES, FEATURES)) + shift
        target = RNG.standard_normal((WORKERS, EXAMPLES, CHANNELS))
        mask = np.ones((WORKERS, EXAMPLES), bool)
        if uneven:
            mask = RNG.random((WORKERS, EXAMPLES)) < 0.7
            mask[step % WORKERS] = False
        yield x.astype(np.float32), target.astype(np.float32), mask


EVEN, UNEVEN = list(batches(False)), list(batches(True))


def as_batch(arrays, by_worker=False):
    """Returns a batch of all workers; if `by_worker`, with an axis of workers."""
    batch = dict(zip(("x", "target", "mask"), arrays, strict=True))
    if by_worker:
        return batch
    return {name: a.reshape(-1, *a.shape[2:]) for name, a in batch.items()}


def layer_options(axis_name, policy):
    """Returns the options of a layer; without an axis name workers are parts."""
    group_size = EXAMPLES if axis_name is None and policy is not None else None
    return {**OPTIONS, "axis_name": axis_name, "group_size": group_size, "sync": policy}


class Net(nn.Module):
    axis_name: str | None
    policy: sync.Policy | None

    @nn.compact
    def __call__(self, x, train, mask):
        kernel = self.param("kernel", lambda _: jnp.array(KERNEL))
        options = layer_options(self.axis_name, self.policy)
        layer = linen.BatchNorm(not train, name="norm", **options)
        return layer(x @ kernel, mask=mask[:, None])


class NnxNet(flax.nnx.Module):
    def __init__(self, axis_name, policy):
        self.kernel = flax.nnx.Param(jnp.array(KERNEL))
        options = layer_options(axis_name, policy)
        self.norm = nnx.BatchNorm(CHANNELS, rngs=flax.nnx.Rngs(0), **options)

    def __call__(self, x, train, mask):
        return self.norm(x @ self.kernel[...], mask=mask[:, None])


def loss_fn(model, batch, train):
    y = model(batch["x"], train, batch["mask"])
    return {"loss": 0.5 * jnp.sum((y - batch["target"]) ** 2, -1)}


def make_state(net, kind=training.TrainState, **fields):
    x, _, mask = as_batch(EVEN[0]).values()
    variables = net.init(jax.random.key(0), x, False, mask)
    return kind.create(net.apply, variables, TX, **fields)


def by_shard_map(step, state, mesh, **options):
    """Returns a jitted step under shard_map, and the state where its steps leave it."""
    specs = sync.partition_specs(state, "d")
    step = jax.shard_map(
        step, mesh=mesh, in_specs=(specs, P("d")), out_specs=(specs, P()), **options
    )
    # The second step would be compiled again for a state at another place.
    shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
    place = jax.jit(lambda tree: tree, out_shardings=shardings)  # On all processes.
    return jax.jit(step), place(state)


def trained(style, policy, batches):
    """Returns kernel, scale, bias, mean, var and losses after training in a style."""
    axis_name = None if style == "jit" else "d"
    state = make_state(Net(axis_name, policy))
    step = training.make_train_step(loss_fn, axis_name=axis_name)
    stacked = style in ("pmap", "vmap")
    if stacked:
        step = {"pmap": jax.pmap, "vmap": jax.vmap}[style](step, axis_name="d")
        state = jax.tree.map(lambda leaf: jnp.stack([leaf] * WORKERS), state)
    else:
        state = sync.for_workers(state, WORKERS)
    if style.startswith("shard_map"):
        mesh = parallel.data_mesh(axis_name="d")
        step, state = by_shard_map(step, state, mesh, check_vma=style == "shard_map")
    losses = []
    for arrays in batches:
        state, metrics = step(state, as_batch(arrays, stacked))
        losses.append(np.ravel(metrics["loss"].mean)[0])
    return results(state, losses, (lambda leaf: leaf[0]) if stacked else np.asarray)


def results(state, losses, of_one=np.asarray):
    """Returns what the simulation returns, from a state and the losses."""
    arrays = {**state.batch_stats["norm"], **state.params["norm"]}
    arrays["kernel"] = state.params["kernel"]
    return {**jax.tree.map(of_one, arrays), "losses": np.array(losses)}


def nnx_trained(policy, axis_name):
    """Returns what `trained` returns; `axis_name` runs it under `nnx.shard_map`."""
    net = NnxNet(axis_name, policy)
    flax.nnx.update(net, sync.for_workers(flax.nnx.state(net), WORKERS))
    optimizer = flax.nnx.Optimizer(net, TX, wrt=flax.nnx.Param)
    step = training.make_nnx_train_step(loss_fn, axis_name=axis_name)
    if axis_name is not None:
        specs = flax.nnx.StateSharding({nnx.OwnBatchSync: P("d"), ...: P()})
        mapped = flax.nnx.shard_map(
            step,
            mesh=parallel.data_mesh(axis_name="d"),
            in_specs=(specs, P(), P("d")),
            out_specs=P(),
        )
        step = flax.nnx.jit(mapped)
    losses = [step(net, optimizer, as_batch(a))["loss"].mean for a in UNEVEN]
    names = ("scale", "bias", "mean", "var")
    arrays = {name: getattr(net.norm, name)[...] for name in names}
    return {**arrays, "kernel": net.kernel[...], "losses": np.array(losses)}


def assert_equal(actual, simulation):
    """Compares with the simulation, up to ten steps of rounding in float32."""
    for name, value in actual.items():
        right = np.asarray(getattr(simulation, name))
        # The gradients are about 0.1.
        np.testing.assert_allclose(value, right, rtol=2e-4, atol=2e-5, err_msg=name)
