"""Training in every style, with uneven work, equals training on one device."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

import jaxbn.testing
from jaxbn import parallel, training
from jaxbn.linen import BatchNorm
from tests import styles

P = jax.P
DEVICES = 8
RNG = np.random.default_rng(0)
BATCHES = [  # The last is smaller than the number of devices.
    {
        "x": (3 * RNG.standard_normal((n, 4))).astype(np.float32),
        "y": RNG.integers(3, size=n),
    }
    for n in (16, 13, 5)
]


class Net(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train, mask):
        for _ in range(2):
            layer = BatchNorm(axis_name=self.axis_name, momentum=0.5)
            x = nn.Dense(8)(x)
            x = nn.relu(layer(x, use_running_average=not train, mask=mask[:, None]))
        return nn.Dense(3)(x)


def loss_fn(model, batch, train):
    logits = model(batch["x"], train=train, mask=batch["mask"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return {"loss": loss, "accuracy": logits.argmax(-1) == batch["y"]}


def make_state(axis_name=None):
    net = Net(axis_name)
    x, mask = BATCHES[0]["x"], np.ones(16, bool)
    init = jax.jit(functools.partial(net.init, train=False))
    variables = init(jax.random.key(0), x, mask=mask)
    tx = optax.sgd(0.1, momentum=0.9)
    return training.TrainState.create(net.apply, variables, tx)


def split(batch):
    return {k: v.reshape(DEVICES, -1, *v.shape[1:]) for k, v in batch.items()}


@functools.cache
def run(style):
    """Parameters, statistics and metrics after the batches, and evaluation."""
    axis_name = None if style in ("single device", "jit") else "d"
    state = make_state(axis_name)
    train_step = training.make_train_step(loss_fn, axis_name=axis_name)
    eval_step = training.make_eval_step(loss_fn, axis_name=axis_name)
    multiple, prepare = DEVICES, dict
    if style == "single device":
        multiple = 1
    elif style == "jit":
        mesh = parallel.data_mesh()
        state = parallel.replicate(state, mesh)
        prepare = lambda batch: parallel.shard_batch(batch, mesh)  # noqa: E731
    elif style.startswith("shard_map"):
        mesh = parallel.data_mesh(axis_name="d")
        train_step, eval_step = (
            jax.jit(
                jax.shard_map(
                    step,
                    mesh=mesh,
                    in_specs=(P(), P("d")),
                    out_specs=out,
                    check_vma=style == "shard_map",
                )
            )
            for step, out in ((train_step, (P(), P())), (eval_step, P()))
        )
    else:  # pmap and vmap: a copy of the state per device.
        transform = {"pmap": jax.pmap, "vmap": jax.vmap}[style]
        train_step, eval_step = (
            transform(step, axis_name="d") for step in (train_step, eval_step)
        )
        state = jax.tree.map(lambda leaf: jnp.stack([leaf] * DEVICES), state)
        prepare = split
    batches = [prepare(parallel.pad_batch(b, multiple)) for b in BATCHES]
    history = []
    for batch in batches:
        state, metrics = train_step(state, batch)
        history.append(metrics)
    history.append(eval_step(state, batches[-1]))
    result = (state.params, state.batch_stats, history)
    stacked = style in ("pmap", "vmap")
    jaxbn.testing.assert_in_sync(result, axis=0 if stacked else None)
    if stacked:
        result = jax.tree.map(lambda leaf: leaf[0], result)
    return jax.tree.map(np.asarray, result)


STYLES = ("jit", "shard_map", "shard_map unchecked", "pmap", "vmap")


@pytest.mark.parametrize("style", styles.every(STYLES, quick=("shard_map",)))
def test_every_style_equals_one_device(style):
    expected, actual = run("single device"), run(style)
    # Rounding of three steps; counts are exact.
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert [int(m["accuracy"].count) for m in actual[2]] == [16, 13, 5, 5]


def test_unbound_axis():
    step = training.make_train_step(loss_fn, axis_name="data")
    batch = parallel.pad_batch(BATCHES[0], 1)
    with pytest.raises(ValueError, match=r"`axis_name` must be bound .* 'data'"):
        step(make_state(), batch)


def test_mesh_of_some_devices():
    chosen = jax.devices()[3:5]
    mesh = parallel.data_mesh(chosen, axis_name="d")
    assert mesh.axis_names == ("d",)
    assert list(mesh.devices.flat) == chosen
    copied = parallel.replicate({"x": np.arange(3.0)}, mesh)["x"]
    assert copied.sharding.device_set == set(chosen)
    assert copied.is_fully_replicated


class BatchTest(parameterized.TestCase):
    @parameterized.parameters((5, 8, 8), (16, 8, 16), (17, 8, 24), (3, 1, 3))
    def test_pad(self, size, multiple, expected):
        batch = {"x": np.arange(size) + 1.0, "mask": np.arange(size) > 0}
        padded = parallel.pad_batch(batch, multiple)
        assert padded["x"].shape == padded["mask"].shape == (expected,)
        np.testing.assert_array_equal(padded["x"][padded["mask"]], batch["x"][1:])
        assert np.all(padded["x"] > 0)

    def test_errors(self):
        with pytest.raises(ValueError, match="`batch` must hold arrays of one size"):
            parallel.pad_batch({"x": np.ones(3), "y": np.ones(4)}, 8)
        with pytest.raises(ValueError, match=r"N > 0, got .*\(0,\)"):
            parallel.pad_batch({"x": np.ones(0)}, 8)
        with pytest.raises(ValueError, match=r"multiple of 8 examples.*pad_batch"):
            parallel.shard_batch({"x": np.ones(5)}, parallel.data_mesh())
        batch = {"x": np.ones(8), "temperature": 0.5}
        for function, argument in (
            (parallel.pad_batch, 8),
            (parallel.shard_batch, parallel.data_mesh()),
        ):
            with pytest.raises(
                ValueError, match=r"batch\['temperature'\].* scalar 0.5"
            ):
                function(batch, argument)
