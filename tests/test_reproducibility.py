"""Tests which trainings agree bit for bit, and which up to rounding.

A network with normalisation, dropout and Adam is trained for some steps, one way and
another.
"""

import functools
import hashlib
import pathlib
import subprocess
import sys

import chex
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxbn.nnx
from experiments.framework import processes
from jaxbn import linen, parallel, training
from tests import two_processes_training

STEPS = 5
RNG = np.random.default_rng(0)
BATCHES = [
    {
        "x": (3 + RNG.standard_normal((32, 6))).astype(np.float32),
        "y": RNG.integers(3, size=32),
    }
    for _ in range(STEPS)
]
# float32 rounds at 6e-8; five steps of Adam, which divides by the size of gradients,
# were seen to make 6e-7 of that.
ROUNDING = {"rtol": 1e-5, "atol": 5e-6}
BN = {"momentum": 0.5, "activation": "relu"}


class Net(nn.Module):
    """Dense layers have no bias before a normalisation; the last test says why."""

    dropout: float = 0.0
    use_bias: bool = False
    group_size: int | None = None
    estimators: tuple[str, str] = ("ema", "debiased")

    @nn.compact
    def __call__(self, x, train):
        for estimator in self.estimators:
            x = nn.Dense(16, use_bias=self.use_bias)(x)
            norm = linen.BatchNorm(
                estimator=estimator, group_size=self.group_size, **BN
            )
            x = norm(x, use_running_average=not train)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(3)(x)


DROPPING = Net(dropout=0.5)


def losses(logits, batch):
    labels = jax.nn.one_hot(batch["y"], 3)
    return {"loss": optax.losses.safe_softmax_cross_entropy(logits, labels)}


def loss_fn(model, batch, train):
    return losses(model(batch["x"], train=train), batch)


def loss_of(state, batch):
    """Returns the loss of each example, in training mode."""
    given = {"params": state.params, "batch_stats": state.batch_stats}
    options = {"train": True, "method": loss_fn, "mutable": ["batch_stats"]}
    return state.apply_fn(given, batch, **options)[0]["loss"]


@functools.cache
def variables_of(net):
    return jax.jit(functools.partial(net.init, train=False))(
        jax.random.key(0), BATCHES[0]["x"]
    )


def start(net):
    tx, key = optax.adam(1e-2), jax.random.key(1)
    return training.TrainState.create(net.apply, variables_of(net), tx, key=key)


def steps(state, batches, **options):
    step = training.make_train_step(loss_fn, **options)
    for batch in batches:
        state, _ = step(state, batch)
    return state


def result(state):
    """All that goes on changing, on the host."""
    state = jax.device_get((state.params, state.batch_stats, state.opt_state))
    return jax.tree.map(np.array, state)


@functools.cache
def trained(net, **options):
    return result(steps(start(net), BATCHES, **options))


def assert_rounded(actual, expected):
    chex.assert_trees_all_close(actual, expected, **ROUNDING)


def test_the_same_program_twice_bit_for_bit():
    expected = trained(DROPPING)
    jax.clear_caches()  # The second time it is compiled anew.
    chex.assert_trees_all_equal(result(steps(start(DROPPING), BATCHES)), expected)


def digest():
    leaves = jax.tree.leaves(trained(DROPPING))
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


@pytest.mark.exhaustive
@pytest.mark.exhaustive
def test_another_process_bit_for_bit():
    name = "tests.test_reproducibility"
    code = f"from tests import conftest; import {name} as t; print(t.digest())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(__file__).parent.parent,
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == digest()


def by_bytes(state, like, folder):
    del folder
    return flax.serialization.from_bytes(like, flax.serialization.to_bytes(state))


def by_orbax(state, like, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", like)


@pytest.mark.parametrize("through", [by_bytes, by_orbax])
def test_restart_from_a_checkpoint_bit_for_bit(through, tmp_path):
    state = steps(start(DROPPING), BATCHES[:2])
    like = start(DROPPING).replace(key=jax.random.key(7))
    restored = through(state, like, tmp_path)
    assert int(restored.step) == 2
    actual = result(steps(restored, BATCHES[2:]))
    chex.assert_trees_all_equal(actual, trained(DROPPING))


@pytest.mark.exhaustive  # Every operation is compiled by itself.
def test_op_by_op_but_for_rounding():
    state = start(DROPPING)
    gradient = training.value_and_grad(loss_fn)
    for batch in BATCHES:
        state = gradient(state, batch).applied_to(state)
    assert_rounded(result(state), trained(DROPPING))


class Model(nnx.Module):
    """`Net` without dropout, whose keys the two frameworks make differently."""

    def __init__(self, rngs):
        options = {"use_bias": False, "rngs": rngs}
        self.Dense_0 = nnx.Linear(6, 16, **options)
        self.BatchNorm_0 = jaxbn.nnx.BatchNorm(16, rngs=rngs, estimator="ema", **BN)
        self.Dense_1 = nnx.Linear(16, 16, **options)
        self.BatchNorm_1 = jaxbn.nnx.BatchNorm(
            16, rngs=rngs, estimator="debiased", **BN
        )
        self.Dense_2 = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        x = self.BatchNorm_0(self.Dense_0(x))
        return self.Dense_2(self.BatchNorm_1(self.Dense_1(x)))


def test_linen_and_nnx_training_bit_for_bit():
    model = Model(nnx.Rngs(0))
    variables = variables_of(Net())
    tree = jax.tree.map(jnp.array, variables["params"])
    for name, stats in variables["batch_stats"].items():
        tree[name] |= stats
    nnx.update(model, tree)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    step = training.make_nnx_train_step(lambda m, b, train: losses(m(b["x"]), b))
    for batch in BATCHES:
        step(model, optimizer, batch)
    params, batch_stats, _ = trained(Net())
    for kind, expected in ((nnx.Param, params), (nnx.BatchStat, batch_stats)):
        actual = nnx.to_pure_dict(nnx.state(model, kind))
        chex.assert_trees_all_equal(actual, expected)


@pytest.mark.exhaustive
def test_jit_with_shardings_but_for_rounding():
    """The masks of dropout are the same, however many devices make them."""
    mesh = parallel.data_mesh()
    assert mesh.size == 8
    batches = [parallel.shard_batch(batch, mesh) for batch in BATCHES]
    state = steps(parallel.replicate(start(DROPPING), mesh), batches)
    assert_rounded(result(state), trained(DROPPING))


def test_order_of_examples_but_for_rounding():
    order = np.random.default_rng(1).permutation(32)
    batches = [jax.tree.map(lambda a: a[order], batch) for batch in BATCHES]
    assert_rounded(result(steps(start(Net()), batches)), trained(Net()))


@pytest.mark.exhaustive
def test_micro_batches_are_groups_of_the_whole_batch_but_for_rounding():
    """Not the whole batch itself: each part is normalised by its own statistics."""
    net = Net(estimators=("ema", "ema"))
    actual = trained(net, micro_batches=4)
    # A part has every fourth example; groups are of neighbours.
    order = np.arange(32).reshape(8, 4).T.ravel()
    batches = [jax.tree.map(lambda a: a[order], batch) for batch in BATCHES]
    groups = net.clone(group_size=8)
    assert_rounded(result(steps(start(groups), batches)), actual)
    whole = trained(net)
    kernels = (each[0]["Dense_0"]["kernel"] for each in (actual, whole))
    assert np.abs(np.subtract(*kernels)).max() > 1e-3


@pytest.mark.exhaustive
@pytest.mark.exhaustive
def test_two_processes_train_as_one_but_for_rounding(tmp_path):
    processes.finish(two_processes_training.__name__, str(tmp_path))
    net, make_batch = two_processes_training.Net(), two_processes_training.make_batch
    variables = net.init(jax.random.key(0), np.ones((1, 3), np.float32), train=False)
    tx = optax.sgd(0.05, 0.9)
    state = training.TrainState.create(net.apply, variables, tx)
    step = training.make_train_step(two_processes_training.loss_fn)
    for index in range(two_processes_training.STEPS):
        x = make_batch(index)
        state, _ = step(state, {"x": x, "y": x.sum(-1)})
    expected = jax.tree.leaves((state.params, state.batch_stats))
    for process in (0, 1):
        end = np.load(tmp_path / f"end {process}.npz")
        assert_rounded(list(end.values()), expected)


@pytest.mark.exhaustive
def test_a_bias_before_normalisation_follows_the_rounding_under_adam():
    """Its gradient is 0 but for rounding, of which Adam makes whole steps."""
    net = Net(use_bias=True)
    order = np.random.default_rng(1).permutation(32)
    batches = [jax.tree.map(lambda a: a[order], batch) for batch in BATCHES]
    states = [steps(start(net), each) for each in (BATCHES, batches)]
    biases = [np.asarray(state.params["Dense_0"]["bias"]) for state in states]
    assert np.abs(np.subtract(*biases)).max() > 5e-3  # The learning rate is 1e-2.
    means = [state.batch_stats["BatchNorm_0"]["mean"] for state in states]
    assert np.abs(np.subtract(*means)).max() > 5e-3
    kernels = [state.params["Dense_0"]["kernel"] for state in states]
    assert_rounded(*kernels)
    outputs = [loss_of(state, BATCHES[0]) for state in states]
    assert_rounded(*outputs)
