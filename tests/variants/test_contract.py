"""Every variant keeps these promises; its formula in float64 is the reference."""

import functools

import chex
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from experiments.framework import styles
from jaxbn import linen, variants
from jaxbn import nnx as jaxbn_nnx
from tests.variants import cases
from tests.variants.cases import BIAS, CASES, CHANNELS, INPUTS, KERNEL, SCALE

SHAPE = (cases.EXAMPLES, cases.POSITIONS, INPUTS)
U = cases.RNG.standard_normal(SHAPE)
DY = cases.RNG.standard_normal((*SHAPE[:-1], CHANNELS))
every = pytest.mark.parametrize("name", CASES)


def step(name, **more):
    case = CASES[name]
    return functools.partial(cases.apply, case.options, case.infers, **more)


def pulled(function, dy, *args):
    """y, and the gradients by inputs, scale and bias."""
    y, pull = jax.vjp(function, *args)
    return y, pull(dy)


@every
def test_values_and_gradients_are_those_of_the_formula(name):
    case = CASES[name]
    with jax.enable_x64(True):
        args = [jnp.asarray(each) for each in (U, SCALE, BIAS)]
        stats = cases.stats_of(case.options, np.float64)

        def ours(u, scale, bias):
            return step(name)(u, None, scale, bias, stats)[0]

        @cases.allow
        def formula(u, scale, bias):
            return case.formula(u @ KERNEL, scale, bias, cases.MEAN, cases.VAR)

        actual, expected = (
            jax.jit(functools.partial(pulled, f, jnp.asarray(DY)))(*args)
            for f in (ours, formula)
        )
    chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].limit])
def test_the_limit_is_batch_norm(name):
    case = CASES[name]
    u = U - U.mean((0, 1)) if case.centred else U
    stats = cases.stats_of(case.limit)
    args = jnp.asarray(u, jnp.float32), None, SCALE, BIAS
    y, _ = cases.apply(case.limit, case.infers, *args, stats)
    like = {"variant": None} if case.infers else {}
    right, _ = cases.apply(like, case.infers, *args, cases.stats_of({}))
    # `test time` with a large prior rounds the share of the batch.
    np.testing.assert_allclose(y, right, rtol=2e-5, atol=2e-5)


@every
@pytest.mark.parametrize(
    "style",
    [
        "vmap",
        "shard_map",
        "jit Auto",
        *(
            pytest.param(each, marks=pytest.mark.exhaustive)
            for each in styles.ALL
            if each not in ("single device", "vmap", "shard_map", "jit Auto")
        ),
    ],
)
def test_devices_give_the_result_of_one(name, style):
    if name == "ghost" and style in styles.MAPPED:
        pytest.skip("With an axis name groups are devices, not examples.")
    if name == "cross iteration" and "Explicit" in style:
        pytest.skip("It raises an error there, which has a test of its own.")
    u, dy = (jnp.asarray(each, jnp.float32) for each in (U, DY))
    mask = jnp.asarray(np.arange(len(U))[:, None, None] != 5) | jnp.zeros_like(
        u[..., :1], bool
    )
    stats = cases.stats_of(CASES[name].options)
    arrays = u, mask, dy, *(jnp.asarray(a, jnp.float32) for a in (SCALE, BIAS)), stats
    one, many = (
        styles.ALL[each](step(name), 4)(*arrays) for each in ("single device", style)
    )
    chex.assert_trees_all_close(one, many, rtol=2e-5, atol=2e-5)


@every
def test_masked_elements_do_not_matter(name):
    case = CASES[name]
    keep = cases.EXAMPLES // 2
    mask = jnp.arange(cases.EXAMPLES)[:, None, None] < keep
    bad = jnp.asarray(U, jnp.float32).at[keep:].set(jnp.nan)
    dy = jnp.asarray(DY, jnp.float32).at[keep:].set(0)
    scale, bias = (jnp.asarray(each, jnp.float32) for each in (SCALE, BIAS))
    options = case.options
    if name == "ghost":
        options = variants.ghost(keep)
    stats = cases.stats_of(options)

    def run(u, mask):
        def f(x, scale, bias):
            out = cases.apply(options, case.infers, x, mask, scale, bias, stats)
            return out

        y, pull, new = jax.vjp(f, u, scale, bias, has_aux=True)
        return y[:keep], pull(dy[: len(y)]), new

    y, (du, *rest), new = run(bad, mask)
    y_right, (du_right, *rest_right), new_right = run(bad[:keep], None)
    chex.assert_trees_all_close(
        (y, du[:keep], rest), (y_right, du_right, rest_right), rtol=1e-5, atol=1e-5
    )
    if name != "ghost":  # The second part has no valid element.
        chex.assert_trees_all_close(new, new_right, rtol=1e-5, atol=1e-6)
    # The convolution before multiplies NaN by a cotangent of 0.
    finite = jnp.isfinite(jnp.stack([leaf.sum() for leaf in jax.tree.leaves(new)]))
    assert finite.all()


@every
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scan_carries_the_state(name, dtype):
    case = CASES[name]
    stats = cases.stats_of(case.options)
    batches = jnp.asarray(cases.RNG.standard_normal((5, *SHAPE)), dtype)

    def body(stats, u):
        y, new = step(name)(u, None, SCALE.astype(np.float32), None, stats)
        return new, y

    new, y = jax.jit(lambda: jax.lax.scan(body, stats, batches))()
    chex.assert_trees_all_equal_shapes_and_dtypes(new, stats)
    chex.assert_tree_all_finite(new)
    assert y.dtype == dtype
    before = stats
    for u in batches:
        before, _ = body(before, u)
    chex.assert_trees_all_close(new, before, rtol=1e-5, atol=1e-5)


@every
def test_bad_batches_do_not_change_the_state_for_good(name):
    stats = cases.stats_of(CASES[name].options)
    for u in (
        jnp.full(SHAPE, jnp.inf),
        jnp.full(SHAPE, 1e30),
        jnp.full(SHAPE, jnp.nan),
    ):
        _, stats = step(name)(u, None, None, None, stats)
        chex.assert_tree_all_finite(stats)
    y, stats = step(name)(jnp.asarray(U, jnp.float32), None, None, None, stats)
    chex.assert_tree_all_finite((y, stats))


class Net(nn.Module):
    """A model with one normalisation, and the linear layer before it."""

    options: dict

    @nn.compact
    def __call__(self, x, train):
        dense = nn.Dense(CHANNELS, use_bias=False)
        norm = linen.BatchNorm(epsilon=cases.EPSILON, **self.options)
        return linen.ConvBatchNorm(dense, norm)(x, use_running_average=not train)


class NnxNet(nnx.Module):
    def __init__(self, options):
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(INPUTS, CHANNELS, use_bias=False, rngs=rngs)
        self.norm = jaxbn_nnx.BatchNorm(
            CHANNELS, epsilon=cases.EPSILON, rngs=rngs, **options
        )

    def __call__(self, x):
        return jaxbn_nnx.ConvBatchNorm(self.dense, self.norm)(x)


def linen_variables(options):
    net = Net(nn.FrozenDict(options))
    u = jnp.asarray(U, jnp.float32)
    variables = net.init(jax.random.key(0), u, train=False)
    variables["params"]["Dense_0"]["kernel"] = jnp.asarray(KERNEL, jnp.float32)
    return net, variables, u


@every
def test_layers_equal_the_function(name):
    case = CASES[name]
    net, variables, u = linen_variables(case.options)
    model = NnxNet(case.options)
    model.dense.kernel[...] = variables["params"]["Dense_0"]["kernel"]
    stats = cases.stats_of(case.options, mean=np.zeros(4), var=np.ones(4))
    mutable = [each for each in variables if each != "params"]
    if case.infers:
        model.eval()
    for index in range(3):
        x = (index + 1) * u
        y, stats = step(name)(x, None, None, None, stats)
        z = model(x)
        w, new = net.apply(variables, x, train=not case.infers, mutable=mutable)
        variables = {**variables, **new}
        chex.assert_trees_all_close(w, y, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(z, y, rtol=1e-5, atol=1e-5)
    mine = variables["batch_stats"]["BatchNorm_0"]
    given = {"mean": stats.mean, "var": stats.var, **stats.extra, **stats.variant}
    chex.assert_trees_all_close(mine, given, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(model.norm.batch_stats, stats, rtol=1e-5, atol=1e-5)


@every
def test_checkpoints_both_ways(name):
    case = CASES[name]
    net, variables, u = linen_variables(case.options)
    plain, given, _ = linen_variables({})
    # From Batch Normalization: only mean and variance are known.
    state = variables["batch_stats"]["BatchNorm_0"]
    state.update(mean=jnp.full(CHANNELS, 2.0), var=jnp.full(CHANNELS, 3.0))
    given["batch_stats"]["BatchNorm_0"] = {k: state[k] for k in ("mean", "var")}
    # To Batch Normalization: further variables do no harm.
    y = plain.apply(variables, u, train=False)
    chex.assert_trees_all_close(y, plain.apply(given, u, train=False))
    if not case.infers:
        chex.assert_trees_all_close(y, net.apply(given, u, train=False))
    data = flax.serialization.to_bytes(variables)
    chex.assert_trees_all_equal(
        flax.serialization.from_bytes(variables, data), variables
    )


@every
def test_tools_for_models(name):
    case = CASES[name]
    net, variables, u = linen_variables(case.options)

    def call(model, x):
        return model(x, train=True)

    variables = jaxbn.recalibrate(net, variables, [u], call)
    x = u @ variables["params"]["Dense_0"]["kernel"]
    state = variables["batch_stats"]["BatchNorm_0"]
    if case.centred:
        chex.assert_trees_all_close(state["mean"], jnp.zeros(CHANNELS))
    else:
        chex.assert_trees_all_close(state["mean"], x.mean((0, 1)), atol=1e-5)
    report = jaxbn.diagnose(net, variables, u, call)
    assert len(report.layers) == 1
    run = jaxbn.freeze(lambda variables: net.apply(variables, u, train=True))
    others = Net(nn.FrozenDict({}))
    if not case.infers:
        right = others.apply(variables, u, train=False)
        chex.assert_trees_all_close(run(variables), right, atol=1e-6)

    def evaluate(model, x):
        return model(x, train=False)

    folded, report = jaxbn.fold(net, variables, u, evaluate)
    assert report.layers[0].outcome == ("left" if case.infers else "folded")
    chex.assert_trees_all_close(
        net.apply(folded, u, train=False),
        net.apply(variables, u, train=False),
        atol=1e-5,
    )
    fresh = jaxbn.reset_batch_stats(variables["batch_stats"])
    chex.assert_trees_all_equal(fresh, linen_variables(case.options)[1]["batch_stats"])


@every
def test_only_x_is_kept(name):
    """The backward pass keeps x, and no other array as large as x."""
    case = CASES[name]
    stats = cases.stats_of(case.options)
    u = jnp.asarray(U, jnp.float32)

    def f(x):
        options = {"epsilon": cases.EPSILON, **case.options}
        if name == "cross iteration":
            options["factors"] = (u, jnp.asarray(KERNEL, jnp.float32))
        if case.infers:
            return jaxbn.batch_norm_inference(x, None, None, stats, **options)
        return jaxbn.batch_norm_train(x, None, None, stats, **options)[0]

    x = u @ jnp.asarray(KERNEL, jnp.float32)
    _, pull = jax.vjp(jax.jit(f), x)
    large = [leaf for leaf in jax.tree.leaves(pull) if np.size(leaf) == x.size]
    assert len(large) <= 1, [leaf.shape for leaf in large]


def test_ghost_on_devices():
    """Parts of a shard, and parts of an array on a mesh of Explicit axes."""
    x = jnp.asarray(cases.RNG.standard_normal((8, 4)), jnp.float32)
    options = variants.ghost(2)
    stats = jaxbn.init_batch_stats(4, estimator=options["estimator"])

    def run(x):
        return jaxbn.batch_norm_train(x, None, None, stats, **options)

    y, new = run(x)
    explicit = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])
    with jax.set_mesh(explicit):
        z, other = jax.jit(run)(
            jax.device_put(x, jax.NamedSharding(explicit, jax.P("d")))
        )
    chex.assert_trees_all_close((z, other), (y, new), rtol=1e-5, atol=1e-6)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("d",))

    def on_shard(x):
        y, new = run(x)
        return y, jaxbn.sync_batch_stats(new, "d")

    specs = {"in_specs": jax.P("d"), "out_specs": (jax.P("d"), jax.P())}
    y_shards, _ = jax.jit(jax.shard_map(on_shard, mesh=mesh, **specs))(x)
    chex.assert_trees_all_close(y_shards, y, rtol=1e-5, atol=1e-6)


def test_explicit_meshes_that_cannot_work_say_so():
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])
    u, kernel = jnp.ones((4, 4)), jnp.ones((4, 4))
    for variant, spec, words in (
        (variants.CrossIteration(4), jax.P("d"), "Explicit axes"),
        (variants.MovingAverage(), jax.P(None, "d"), "Explicit axes"),
    ):
        stats = jaxbn.init_batch_stats(4, variant=variant)
        x = jax.device_put(u, jax.NamedSharding(mesh, spec))
        needs = isinstance(variant, variants.CrossIteration)
        given = {"factors": (x, kernel)} if needs else {}
        with jax.set_mesh(mesh), pytest.raises(ValueError, match=words):
            jaxbn.batch_norm_train(x, None, None, stats, variant=variant, **given)


def test_errors():
    x, stats = jnp.ones((4, 2)), jaxbn.init_batch_stats(2)
    train = functools.partial(jaxbn.batch_norm_train, x, None, None)
    with pytest.raises(TypeError, match="`variant` must be a variant"):
        train(stats, variant="renorm")
    with pytest.raises(TypeError, match="`variant` must be hashable"):
        train(stats, variant=Unhashable())
    with pytest.raises(ValueError, match="`sync` and `variant`"):
        train(stats, variant=variants.Renorm(), sync=jaxbn.sync.FrozenAfter(1))
    with pytest.raises(ValueError, match="The state of Renorm"):
        train(stats, variant=variants.Renorm())
    for wrong in (dict(r_max=0.5), dict(d_max=-1), dict(warmup_steps=-1)):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            variants.Renorm(**wrong)
    for variant in (variants.MovingAverage(), variants.CrossIteration(3)):
        given = jaxbn.init_batch_stats(2, variant=variant)
        with pytest.raises(ValueError, match="whole batch"):
            train(given, variant=variant, group_size=2)
    with pytest.raises(ValueError, match="`factors`"):
        train(given, variant=variant)


class Unhashable(variants.Variant):
    __hash__ = None  # type: ignore
