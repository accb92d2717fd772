"""Training in every style with uneven work equals one device; replicas are merged."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxbn
from jaxbn import parallel, testing, training
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
    net, batch = Net(axis_name), parallel.pad_batch(BATCHES[0], 1)
    init = jax.jit(functools.partial(net.init, train=False))
    variables = init(jax.random.key(0), batch["x"], mask=batch["mask"])
    tx = optax.sgd(0.1, momentum=0.9)
    return training.TrainState.create(net.apply, variables, tx)


def split(batch):
    return {k: v.reshape(DEVICES, -1, *v.shape[1:]) for k, v in batch.items()}


@functools.cache
def run(style):
    """Returns parameters, statistics and metrics after the batches and evaluation."""
    axis_name = None if style in ("single device", "jit") else "d"
    state = make_state(axis_name)
    steps = [
        make(loss_fn, axis_name=axis_name)
        for make in (training.make_train_step, training.make_eval_step)
    ]
    multiple, prepare = DEVICES, dict
    if style == "single device":
        multiple = 1
    elif style == "jit":
        mesh = parallel.data_mesh()
        state = parallel.replicate(state, mesh)
        prepare = functools.partial(parallel.shard_batch, mesh=mesh)
    elif style.startswith("shard_map"):
        options = {
            "mesh": parallel.data_mesh(axis_name="d"),
            "in_specs": (P(), P("d")),
            "out_specs": P(),
            "check_vma": style == "shard_map",
        }
        steps = [jax.jit(jax.shard_map(step, **options)) for step in steps]
    else:  # pmap and vmap: a copy of the state per device.
        transform = {"pmap": jax.pmap, "vmap": jax.vmap}[style]
        steps = [transform(step, axis_name="d") for step in steps]
        state = jax.tree.map(lambda leaf: jnp.stack([leaf] * DEVICES), state)
        prepare = split
    train_step, eval_step = steps
    batches = [prepare(parallel.pad_batch(b, multiple)) for b in BATCHES]
    history = []
    for batch in batches:
        state, metrics = train_step(state, batch)
        history.append(metrics)
    history.append(eval_step(state, batches[-1]))
    result = (state.params, state.batch_stats, history)
    stacked = style in ("pmap", "vmap")
    testing.assert_in_sync(result, axis=0 if stacked else None)
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


def test_mesh_of_some_devices():
    chosen = jax.devices()[3:5]
    mesh = parallel.data_mesh(chosen, axis_name="d")
    assert mesh.axis_names == ("d",)
    assert list(mesh.devices.flat) == chosen
    copied = parallel.replicate({"x": np.arange(3.0)}, mesh)["x"]
    assert copied.sharding.device_set == set(chosen)
    assert copied.is_fully_replicated


@pytest.mark.parametrize(
    ("size", "multiple", "expected"), [(5, 8, 8), (16, 8, 16), (17, 8, 24), (3, 1, 3)]
)
def test_padding(size, multiple, expected):
    batch = {"x": np.arange(size) + 1.0, "mask": np.arange(size) > 0}
    padded = parallel.pad_batch(batch, multiple)
    assert padded["x"].shape == padded["mask"].shape == (expected,)
    np.testing.assert_array_equal(padded["x"][padded["mask"]], batch["x"][1:])
    assert np.all(padded["x"] > 0)  # The copies are real data.


def test_batches_that_do_not_fit():
    mesh = parallel.data_mesh()
    with pytest.raises(ValueError, match="`batch` must hold arrays of one size"):
        parallel.pad_batch({"x": np.ones(3), "y": np.ones(4)}, 8)
    with pytest.raises(ValueError, match=r"N > 0, got .*\(0,\)"):
        parallel.pad_batch({"x": np.ones(0)}, 8)
    with pytest.raises(ValueError, match=r"multiple of 8 examples.*pad_batch"):
        parallel.shard_batch({"x": np.ones(5)}, mesh)
    batch = {"x": np.ones(8), "temperature": 0.5}
    for function, argument in ((parallel.pad_batch, 8), (parallel.shard_batch, mesh)):
        with pytest.raises(ValueError, match=r"batch\['temperature'\].* scalar 0.5"):
            function(batch, argument)


@pytest.mark.first_case
@pytest.mark.parametrize("style", ["vmap", "pmap", "shard_map"])
def test_merged_replicas_have_the_variance_of_their_means(style):
    means = RNG.standard_normal((8, 3)).astype(np.float32) * 5
    variances = RNG.random((8, 3)).astype(np.float32) + 1
    stats = {"block": {"bn": {"mean": means, "var": variances}}}
    merge = functools.partial(jaxbn.sync_batch_stats, axis_name="d")
    first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)  # noqa: E731
    if style == "shard_map":
        specs = {"in_specs": P("d"), "out_specs": P()}
        mesh = parallel.data_mesh(axis_name="d")
        merged = jax.shard_map(lambda s: merge(first(s)), mesh=mesh, **specs)(stats)
    else:
        merged = getattr(jax, style)(merge, axis_name="d")(stats)
        testing.assert_in_sync(merged, axis=0)
        merged = first(merged)
    bn = merged["block"]["bn"]
    np.testing.assert_allclose(bn["mean"], means.mean(0), rtol=1e-5)
    # A `pmean` has the first term alone.
    np.testing.assert_allclose(bn["var"], variances.mean(0) + means.var(0), rtol=1e-5)


def test_merged_statistics_of_parts_are_those_of_the_whole():
    x = np.random.default_rng(0).standard_normal((8, 64, 3)).astype(np.float32)
    x += np.arange(8, dtype=np.float32)[:, None, None]

    def local_then_merged(x):
        _, stats = jaxbn.batch_norm_train(
            x, None, None, jaxbn.init_batch_stats(3), momentum=0.0, unbiased=False
        )
        return jaxbn.sync_batch_stats(stats, "d")

    merged = jax.vmap(local_then_merged, axis_name="d")(x)
    whole = x.astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(merged.mean[0], whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(merged.var[0], whole.var(0), rtol=1e-5)


def test_equal_replicas_stay_as_they_are():
    stats = jaxbn.BatchStats(jnp.ones((8, 3)), jnp.full((8, 3), 2.0))
    merged = jax.vmap(lambda s: jaxbn.sync_batch_stats(s, "d"), axis_name="d")(stats)
    chex.assert_trees_all_equal(merged, stats)


@pytest.mark.parametrize("change", [0.0, 1e-6, np.nan])
def test_in_sync(change):
    stats = {"mean": jnp.ones((8, 3)).at[5, 1].add(change), "z": jnp.ones((8, 2)) * 1j}
    same = jax.vmap(lambda s: jaxbn.in_sync(s, "d"), axis_name="d")(stats)
    np.testing.assert_array_equal(same, change == 0)


def test_unbound_axis():
    step = training.make_train_step(loss_fn, axis_name="d")
    batch = parallel.pad_batch(BATCHES[0], 1)
    stats = jaxbn.init_batch_stats(3)
    for function in (
        lambda: step(make_state(), batch),
        lambda: jaxbn.sync_batch_stats(stats, "d"),
        lambda: jaxbn.in_sync(stats, "d"),
    ):
        with pytest.raises(ValueError, match=r"`axis_name` must be bound .*'d'"):
            function()
