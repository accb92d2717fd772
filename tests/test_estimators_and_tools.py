"""Tests the state of every estimator with every tool."""

import copy
import functools
import pickle

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn
from jaxbn import estimators, linen

MOMENTUM, BATCHES = 0.9, 6
RNG = np.random.default_rng(0)
X = (13 + 2 * RNG.standard_normal((BATCHES, 8, 2))).astype(np.float32)
FAR = (104 + 3 * RNG.standard_normal((64, 2))).astype(np.float32)
OWN = {
    "ema": estimators.ema(MOMENTUM),
    "debiased": estimators.debiased(MOMENTUM),
    "cumulative": estimators.cumulative(),
    "window": estimators.window(4),
}


def share_of_next(name, old):
    """Returns the weight of a batch after `old` batches, or after a tool's result."""
    number = old or {"cumulative": 99, "window": 4}.get(name)
    return {
        "ema": 1 - MOMENTUM,
        "debiased": (1 - MOMENTUM) / (1 - MOMENTUM ** ((old or np.inf) + 1)),
        "cumulative": 1 / ((number or 0) + 1),
        "window": 1 / min((number or 0) + 1, 4),
    }[name]


def trained(name, batches=X):
    """Returns the state after some batches."""
    estimator = OWN[name]
    state = estimator.init(2, jnp.float32)
    for x in batches:
        state = estimator.update(state, jaxbn.batch_moments(x))
    return state


def as_collection(stats):
    """Returns the variables of a Linen layer."""
    return {"mean": stats.mean, "var": stats.var, **stats.extra}


def update(name, state, x):
    return OWN[name].update(state, jaxbn.batch_moments(x))


def assert_moved(new, mean, var, x, share):
    """Checks that `mean` and `var` have moved by one batch with the weight `share`."""
    x = x.astype(np.float64)
    for moved, old, batch in (
        (new.mean, mean, x.mean(0)),
        (new.var, var, x.var(0, ddof=1)),
    ):
        kept, added = (1 - share) * np.asarray(old, np.float64), share * batch
        # The two terms of the mean may cancel: rounding is relative to the larger one.
        atol = 1e-5 * max(np.abs(kept).max(), np.abs(added).max())
        np.testing.assert_allclose(moved, kept + added, rtol=0, atol=atol)


@pytest.mark.parametrize("name", OWN)
def test_a_batch_beyond_the_dtype_of_the_statistics_is_left_out(name):
    """Its variance is finite in float64 and infinite in float32."""
    old = trained(name)
    with jax.enable_x64(True):
        x = np.array([[1e20, 1.0], [3e20, 4.0]])
        new = update(name, old, jnp.asarray(x))
    for moved, before in ((new.mean, old.mean), (new.var, old.var)):
        assert moved.dtype == jnp.float32
        assert moved[0] == before[0]
        assert moved[1] != before[1]
        assert np.isfinite(moved[1])


@pytest.mark.first_case
@pytest.mark.parametrize("name", OWN)
@hypothesis.given(
    before=st.integers(0, BATCHES),
    mean=st.floats(-1e3, 1e3, width=32, allow_subnormal=False),  # They count as 0.
    log_var=st.floats(-6, 6),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_statistics_that_were_set_are_established(name, before, mean, log_var):
    """Any tool, checkpoint or hand may set them, after any number of batches."""
    hypothesis.assume(mean != 0)  # With a variance of 1 it is the initial one.
    state = trained(name, X[:before])
    mean, var = np.full(2, mean, np.float32), np.full(2, 10**log_var, np.float32)
    state = state._replace(mean=jnp.asarray(mean), var=jnp.asarray(var))
    new = update(name, state, X[0])
    assert_moved(new, mean, var, X[0], share_of_next(name, before))
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


@pytest.mark.first_case
@pytest.mark.parametrize("name", OWN)
def test_recalibrated_statistics_go_on(name):
    layer = linen.BatchNorm(False, estimator=OWN[name])
    variables = layer.init(jax.random.key(0), X[0])
    variables["batch_stats"] = as_collection(trained(name))
    new = jaxbn.recalibrate(layer, variables, [FAR], lambda layer, x: layer(x))
    stats = new["batch_stats"]
    np.testing.assert_allclose(stats["mean"], FAR.mean(0), rtol=1e-5)
    _, moved = layer.apply(new, X[0], mutable=["batch_stats"])
    after = jaxbn.BatchStats(moved["batch_stats"]["mean"], moved["batch_stats"]["var"])
    share = share_of_next(name, BATCHES)
    assert_moved(after, stats["mean"], stats["var"], X[0], share)


@pytest.mark.first_case
@pytest.mark.parametrize("name", OWN)
def test_merged_replicas_go_on(name):
    """Replicas that saw other numbers of batches, in a checked shard_map."""
    numbers = (0, 1, 3, BATCHES)
    states = [trained(name, X[:number]) for number in numbers]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def merge(state):
        merged = jaxbn.sync_batch_stats(jax.tree.map(lambda s: s[0], state), "d")
        return merged, jaxbn.in_sync(merged, "d")

    specs = {"in_specs": jax.P("d"), "out_specs": jax.P()}
    merged, same = jax.jit(jax.shard_map(merge, mesh=mesh, **specs))(stacked)
    assert same
    weights = {
        "ema": np.ones(4),
        "debiased": 1 - MOMENTUM ** np.array(numbers),
        "cumulative": np.array(numbers),
        "window": np.minimum(numbers, 4),
    }[name]
    share = (weights / weights.sum())[:, None]
    means, variances = (
        np.float64([getattr(state, field) for state in states])
        for field in ("mean", "var")
    )
    mean = (share * means).sum(0)
    var = (share * (variances + (means - mean) ** 2)).sum(0)
    np.testing.assert_allclose(merged.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(merged.var, var, rtol=1e-5)
    total = weights.mean()
    if name == "debiased":
        next_share = (1 - MOMENTUM) / (MOMENTUM * total + 1 - MOMENTUM)
    elif name == "window":  # The weight of its last slot leaves.
        last = np.mean([number >= 4 for number in numbers])
        next_share = 1 / (total - last + 1)
    else:
        next_share = 1 - MOMENTUM if name == "ema" else 1 / (total + 1)
    assert_moved(update(name, merged, X[0]), mean, var, X[0], next_share)


@pytest.mark.parametrize("name", OWN)
def test_replicas_that_saw_nothing(name):
    state = OWN[name].init(2, jnp.float32)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), state)
    merge = lambda state: jaxbn.sync_batch_stats(state, "d")  # noqa: E731
    merged = jax.vmap(merge, axis_name="d")(stacked)
    chex.assert_trees_all_equal(merged, stacked)


@pytest.mark.first_case
@pytest.mark.parametrize("name", OWN)
def test_average_of_states_goes_on(name):
    """A target network follows by `optax.incremental_update`, and then trains."""
    state = OWN[name].init(2, jnp.float32)
    target = state
    for _ in range(50):
        for x in X[:2]:
            state = update(name, state, x)
        target = optax.incremental_update(state, target, 0.1)
    # The last batch weighs more than the one before.
    mean = X[:2].astype(np.float64).mean((0, 1))
    np.testing.assert_allclose(target.mean, mean, rtol=0.05)
    for _ in range(300):
        for x in (X[2] + 100, X[3] + 100):
            target = update(name, target, x)
    mean = X[2:4].astype(np.float64).mean((0, 1)) + 100
    # A cumulative average has the batches of before in it, a seventh of all.
    slack = 0.15 if name == "cumulative" else 5e-3
    np.testing.assert_allclose(target.mean, mean, rtol=slack)


REPLACED = [(old, new) for old in OWN for new in OWN]


@pytest.mark.first_case
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(("old", "new"), REPLACED)
def test_replaced_layers_go_on(old, new, stacked):
    """Trained statistics count as established, whichever estimator follows.

    Layers may be stacked by `nnx.vmap`.
    """

    def make(key):
        return jaxbn.nnx.BatchNorm(2, estimator=OWN[old], rngs=nnx.Rngs(key))

    def run(layer, x):
        return layer(x)

    key = jax.random.key(0)
    if stacked:
        make, run = nnx.vmap(make), nnx.vmap(run, in_axes=(0, None))
        key = jax.random.split(key, 3)
    layer = make(key)
    for x in X:
        run(layer, x)
    mean, var = layer.batch_stats[:2]
    model = jaxbn.replace(nnx.Dict(norm=layer), estimator=OWN[new], epsilon=1e-4)
    run(model.norm, X[0])
    after = model.norm.batch_stats
    if old == new:
        expected = update(new, trained(new), X[0])
        for leaf, other in zip(after[:2], expected[:2], strict=True):
            other = np.broadcast_to(other, leaf.shape)
            np.testing.assert_allclose(leaf, other, rtol=1e-6)
    else:
        assert_moved(after, mean, var, X[0], share_of_next(new, 0))


@pytest.mark.parametrize("name", ["debiased", "cumulative", "window"])
def test_a_replaced_layer_that_was_never_trained_begins_with_its_first_batch(name):
    model = nnx.Sequential(nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    model = jaxbn.replace(model, estimator=name)
    model(X[0])
    mean = X[0].astype(np.float64).mean(0)
    np.testing.assert_allclose(model.layers[0].mean[...], mean, rtol=1e-5)


@pytest.mark.parametrize("name", ["debiased", "cumulative", "window"])
def test_a_checkpoint_of_the_default_goes_on(name):
    """It has no more than `mean` and `var`, as one of Flax's layer."""
    stats = {"mean": jnp.full(2, 100.0), "var": jnp.full(2, 9.0)}
    layer = linen.BatchNorm(False, estimator=OWN[name])
    variables = {**layer.init(jax.random.key(0), X[0]), "batch_stats": stats}
    _, new = layer.apply(variables, X[0], mutable=["batch_stats"])
    after = jaxbn.BatchStats(new["batch_stats"]["mean"], new["batch_stats"]["var"])
    assert_moved(after, stats["mean"], stats["var"], X[0], share_of_next(name, 0))


@pytest.mark.parametrize("name", OWN)
def test_reset_of_an_nnx_state_leaves_parameters(name):
    class Gated(jaxbn.nnx.BatchNorm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.gate = nnx.Param(jnp.full(2, 7.0))

    layer = Gated(2, estimator=name, rngs=nnx.Rngs(0))
    layer.scale[...], layer.bias[...] = jnp.full(2, 3.0), jnp.full(2, 4.0)
    fresh = nnx.state(jaxbn.nnx.BatchNorm(2, estimator=name, rngs=nnx.Rngs(0)))
    layer(X[0])
    state = nnx.state(layer)
    kept = {"scale": 3.0, "bias": 4.0, "gate": 7.0}
    for tree in (state, nnx.to_pure_dict(nnx.state(layer, nnx.Not(_IsGate())))):
        reset = jaxbn.reset_batch_stats({"bn": tree})["bn"]
        for field, value in kept.items():
            if field in reset:
                np.testing.assert_array_equal(_array(reset[field]), value)
        for field, leaf in fresh.items():
            if field not in kept:
                np.testing.assert_array_equal(_array(reset[field]), leaf.get_value())


class _IsGate:
    """A filter: a plain dict does not tell parameters of a subclass from statistics."""

    def __call__(self, path, value):
        return path[-1] == "gate"


def _array(leaf):
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


@pytest.mark.parametrize("name", OWN)
def test_sync_of_an_nnx_state_leaves_parameters(name):
    layer = jaxbn.nnx.BatchNorm(2, estimator=name, rngs=nnx.Rngs(0))
    layer(X[0])
    state = nnx.state(layer)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 2]), state)
    merge = lambda state: jaxbn.sync_batch_stats(state, "d")  # noqa: E731
    merged = jax.vmap(merge, axis_name="d")(stacked)
    for field in ("scale", "bias"):
        np.testing.assert_array_equal(_array(merged[field]), _array(stacked[field]))
    assert np.ptp(_array(merged["mean"]), axis=0).max() == 0


@pytest.mark.first_case
@pytest.mark.parametrize("name", OWN)
def test_carried_by_scan_and_by_value_and_grad(name):
    """All leaves are floating-point numbers, as the states of most tools are."""
    state = trained(name)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    layer = jaxbn.nnx.BatchNorm(2, estimator=name, rngs=nnx.Rngs(0))

    def loss(layer):
        return jnp.sum(layer(X[0]) ** 2)

    value, _ = nnx.value_and_grad(loss, graph=False)(layer)
    np.testing.assert_allclose(value, loss(layer), rtol=1e-6)

    def step(state, x):
        return jax.tree.map(jnp.add, state, update(name, state, x)), None

    jax.jvp(lambda state: jax.lax.scan(step, state, X)[0].mean, (state,), (state,))


EQUAL = {
    "ema": lambda: estimators.ema(np.float32(0.5), unbiased=False),
    "debiased": lambda: estimators.debiased(jnp.float32(0.25)),
    "cumulative": lambda: estimators.cumulative(unbiased=False),
    "window": lambda: estimators.window(5),
}


@pytest.mark.parametrize("name", OWN)
def test_equal_settings_are_equal(name):
    one, other = EQUAL[name](), EQUAL[name]()
    assert one == other
    assert hash(one) == hash(other)
    for same in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert same == one
        assert hash(same) == hash(one)
    assert one != OWN[name]
    assert one in {other: 1}


@pytest.mark.first_case
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_copied_model_is_the_same_static_argument(name, copied):
    layer = jaxbn.nnx.BatchNorm(2, estimator=EQUAL[name](), rngs=nnx.Rngs(0))
    traces = []

    @nnx.jit
    def train(layer, x):
        traces.append(None)
        return layer(x)

    other = copied(layer)
    for each in (layer, other, nnx.clone(layer)):
        train(each, X[0])
    assert len(traces) == 1
    average = jax.tree.map(lambda a, b: (a + b) / 2, *map(nnx.state, (layer, other)))
    nnx.update(other, average)
    graphs = [nnx.split(each)[0] for each in (layer, other)]
    assert graphs[0] == graphs[1]
    mean = lambda a, b: (a + b) / 2  # noqa: E731
    jax.tree.map(mean, layer, other)


@pytest.mark.parametrize("name", OWN)
def test_a_linen_layer_with_equal_settings_is_equal(name):
    one, other = (linen.BatchNorm(False, estimator=EQUAL[name]()) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def init(layer, key, x):
        traces.append(None)
        return layer.init(key, x)

    for layer in (one, other, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        init(layer, jax.random.key(0), X[0])
    assert len(traces) == 1


@pytest.mark.parametrize("name", OWN)
def test_functions_compose(name):
    """Inference takes what training returned."""
    x = X[0]
    state = trained(name)
    _, state = jaxbn.batch_norm_train(x, None, None, state, estimator=OWN[name])
    actual = jaxbn.batch_norm_inference(x, None, None, state)
    expected = (x - state.mean[None]) / np.sqrt(state.var[None] + 1e-5)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.exhaustive
def test_inference_takes_the_state_of_a_policy():
    x, sync = X[0], jaxbn.sync.Stale(0.5)
    given = jaxbn.sync.for_workers(jaxbn.init_batch_stats(2, sync=sync), 2)
    _, state = jaxbn.batch_norm_train(x, None, None, given, sync=sync, group_size=4)
    assert state.sync
    actual = jaxbn.batch_norm_inference(x, None, None, state)
    expected = jaxbn.batch_norm_inference(x, None, None, state._replace(sync={}))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.exhaustive
@hypothesis.given(tail=st.booleans(), size=st.integers(1, 3), unroll=st.booleans())
@hypothesis.settings(deadline=None, max_examples=10)
def test_moments_of_three_arrays_can_be_carried(tail, size, unroll):
    zeros = jnp.zeros(size)
    none = jaxbn.Moments(zeros, zeros, zeros, *([zeros] if tail else []))
    parts = RNG.standard_normal((4, 6, size)).astype(np.float32)

    def merge(total, part):
        return jaxbn.merge_moments(total, jaxbn.batch_moments(part)), None

    total, _ = jax.lax.scan(merge, none, parts, unroll=unroll)
    whole = jaxbn.batch_moments(parts.reshape(-1, size))
    chex.assert_trees_all_close(total[:3], whole[:3], rtol=1e-4, atol=1e-6)
    assert isinstance(total, jaxbn.Moments)


def test_moments_are_an_ordinary_named_tuple():
    moments = jaxbn.Moments(jnp.ones(2), jnp.ones(2), jnp.ones(2))
    np.testing.assert_array_equal(moments.tail, jnp.zeros(2))
    assert moments._replace(count=None).count is None
    nones = jax.tree.map(lambda leaf: None, moments)
    assert isinstance(nones, jaxbn.Moments)
    same = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, moments)))
    assert isinstance(same, jaxbn.Moments)
    chex.assert_trees_all_equal(same, moments)


@pytest.mark.first_case
@pytest.mark.parametrize("number", [3, 4])  # 4 is also the number of slots.
@pytest.mark.parametrize("name", OWN)
def test_replicas_of_stacked_layers(name, number):
    """Layers of an `nn.scan`, each of which saw other data, in two replicas."""
    few, many = X[:1], X
    layers = range(number)
    replicas = [
        [trained(name, batches + np.float32(layer)) for layer in layers]
        for batches in (few, many)
    ]
    stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731
    stacked = jax.tree.map(stack, *[jax.tree.map(stack, *each) for each in replicas])
    merge = lambda state: jaxbn.sync_batch_stats(state, "d")  # noqa: E731
    merged = jax.vmap(merge, axis_name="d")(stacked)
    for layer in layers:
        one = jax.tree.map(stack, *(each[layer] for each in replicas))
        expected = jax.vmap(merge, axis_name="d")(one)
        actual = jax.tree.map(lambda leaf, layer=layer: leaf[:, layer], merged)
        chex.assert_trees_all_close(actual, expected, rtol=1e-6)


def test_a_small_change_of_a_large_mean_is_established():
    """The change is a tenth of the standard deviation, and tiny beside the mean."""
    x = (1000 + 0.1 * RNG.standard_normal((64, 2))).astype(np.float32)
    state = OWN["window"].init(2, jnp.float32)
    for _ in range(6):
        state = update("window", state, x)
    state = state._replace(mean=state.mean + 0.01)
    new = update("window", state, x)
    step = np.float64(x.mean(0, dtype=np.float64)) - np.float64(state.mean)
    np.testing.assert_allclose(new.mean - state.mean, step / 4, rtol=0.05)


@pytest.mark.parametrize("kind", ["ema", "debiased"])
def test_momentum_of_every_channel(kind):
    momenta = np.float32([0.5, 0.9])
    one, other = (getattr(estimators, kind)(momenta.copy()) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    both = one.update(one.init(2, jnp.float32), jaxbn.batch_moments(X[0]))
    both = one.update(both, jaxbn.batch_moments(X[1]))
    for channel, momentum in enumerate(momenta):
        alone = getattr(estimators, kind)(momentum)
        state = alone.init(1, jnp.float32)
        for x in X[:2]:
            part = x[:, channel : channel + 1]
            state = alone.update(state, jaxbn.batch_moments(part))
        one_channel = jax.tree.map(lambda leaf, c=channel: leaf[c : c + 1], both)
        chex.assert_trees_all_close(one_channel, state, rtol=1e-6)


def test_state_of_policies_is_not_merged():
    own = {"own": {"mean": jnp.array([[1.0], [2.0]]), "var": jnp.ones((2, 1))}}
    tree = {"batch_sync": {"bn": own}, "batch_stats": {"bn": {"mean": jnp.zeros((2, 1)), "var": jnp.ones((2, 1))}}}  # fmt: skip # noqa: E501
    merge = lambda tree: jaxbn.sync_batch_stats(tree, "d")  # noqa: E731
    merged = jax.vmap(merge, axis_name="d")(tree)
    chex.assert_trees_all_equal(merged["batch_sync"], tree["batch_sync"])
    reset = jaxbn.reset_batch_stats(tree)
    chex.assert_trees_all_equal(reset["batch_sync"], tree["batch_sync"])
