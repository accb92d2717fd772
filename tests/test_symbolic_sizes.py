"""Programs that `jax.export` makes once for every size of the batch.

Each is exported with symbols as sizes, the forms of the variance for TPU and GPU too,
and is run on this CPU with several sizes. The right value is what the same function
returns when it is called directly.
"""

import functools
import typing

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import jaxbn
from jaxbn import linen, sync, training
from jaxbn import nnx as jaxbn_nnx
from jaxbn._core import collectives, moments, reduction, variance
from tests import reference, small_net

PLATFORMS = ["cpu", "tpu", "cuda"]
SIZES = ((3, 5, 4), (8, 2, 9))
RNG = np.random.default_rng(0)

SCALE, BIAS = np.float32([1, 2, 0.5]), np.float32([0, 1, -1])
STATS = jaxbn.BatchStats(BIAS, 1 + SCALE)


def assert_exports(function, make, sizes=SIZES, draw=None, platforms=("cpu",)):
    """Checks that one exported program gives for all sizes what the function gives.

    Args:
      function: of one tree of arrays.
      make: a function from `array`, `b`, `h` and `w` to such a tree. It is called with
        symbols and with integers, and `array` makes an array of the given sizes.
      sizes: the integers.
      draw: a function from integers to values, normal random numbers by default.
      platforms: what the program is for. All forms of the variance are traced for any.
    """
    draw = draw or (lambda *shape: 1 + 2 * RNG.standard_normal(shape))

    def abstract(*shape, dtype="float32"):
        return jax.ShapeDtypeStruct(shape, dtype)

    def concrete(*shape, dtype="float32"):
        drawn = draw(*shape)
        return drawn > 0 if dtype == "bool" else drawn.astype(dtype)

    symbols = export.symbolic_shape("b, h, w")
    jitted = jax.jit(function)
    program = export.export(jitted, platforms=platforms)(make(abstract, *symbols))
    for each in sizes:
        arrays = make(concrete, *each)
        # The form of the variance and the order of a sum may be others.
        chex.assert_trees_all_close(
            program.call(arrays), jitted(arrays), rtol=1e-4, atol=2e-5
        )


def images(array, b, h, w):
    return array(b, h, w, 3)


def rows(array, b, h, w):
    return array(b, 3)


def gradients(train):
    """A function from arguments to the output, the new statistics and gradients."""

    def function(args):
        def loss(*args):
            y, stats = train(*args)
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, stats)

        return jax.value_and_grad(loss, range(len(args)), has_aux=True)(*args)

    return function


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("variance", "make"),
    [
        *((variance, images) for variance in typing.get_args(reduction.Variance)),
        ("auto", rows),
        *(
            pytest.param(variance, rows, marks=pytest.mark.exhaustive)
            for variance in typing.get_args(reduction.Variance)[1:]
        ),
    ],
)
def test_every_form_of_the_variance(variance, make):
    def train(x):
        return jaxbn.batch_norm_train(x, SCALE, BIAS, STATS, variance=variance)

    assert_exports(
        gradients(train), lambda *sizes: (make(*sizes),), platforms=PLATFORMS
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "make",
    [
        lambda array, b, h, w: array(b, 5, 6, 3),
        lambda array, b, h, w: array(4, h, 8 * w, 3),
        lambda array, b, h, w: array(4, 8 * w, 3),
        lambda array, b, h, w: array(4, 8, w, 3),
    ],
)
def test_some_sizes_are_known(make):
    def forms(x):
        settings = reduction.Settings((x.ndim - 1,))
        return [
            variance.local_moments(settings._replace(variance=form), x, None)
            for form in ("auto", "sliced", "shifted")
        ]

    assert_exports(forms, make)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "gelu"},
        {"activation": "leaky_relu", "in_place": True},
        pytest.param({"activation": "relu"}, marks=pytest.mark.exhaustive),
        pytest.param(
            {"unbiased": False, "variance": "unconditional"},
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=str,
)
def test_mask_and_residual(options):
    def make(array, b, h, w):
        return array(b, h, w, 3), array(b, h, w, 3), array(b, h, w, 1, dtype="bool")

    def function(args):
        *args, mask = args

        def train(x, residual):
            return jaxbn.batch_norm_train(
                x, SCALE, BIAS, STATS, residual=residual, mask=mask, **options
            )

        return gradients(train)(args)

    assert_exports(function, make)


def test_mask_of_examples():
    def make(array, b, h, w):
        return array(b, h, w, 3), array(b, 1, 1, 1, dtype="bool")

    def function(args):
        x, mask = args
        return jaxbn.batch_norm_train(x, SCALE, BIAS, STATS, mask=mask)

    assert_exports(function, make)


def test_mask_that_could_belong_to_other_axes():
    b, h = export.symbolic_shape("b, h")
    x = jax.ShapeDtypeStruct((b, b, h), jnp.float32)
    mask = jax.ShapeDtypeStruct((b, h), bool)
    jax.eval_shape(lambda x, mask: jaxbn.batch_moments(x, mask=mask), x, mask)
    x = jax.ShapeDtypeStruct((h, h, 1), jnp.float32)
    mask = jax.ShapeDtypeStruct((h, 1), bool)
    with pytest.raises(ValueError, match="could belong to the first or to the last"):
        jax.eval_shape(lambda x, mask: jaxbn.batch_moments(x, mask=mask), x, mask)


@pytest.mark.first_case
@pytest.mark.parametrize(
    "options",
    [
        {"axis": 1},
        {"axis": (0, 1)},
        {"dtype": jnp.bfloat16},
        {"dtype": None, "x_dtype": jnp.bfloat16},
    ],
    ids=str,
)
def test_axes_and_dtypes(options):
    channels = 3 if options.get("axis") != (0, 1) else (4, 3)
    options = dict(options)
    dtype = options.pop("x_dtype", jnp.float32)

    def function(x):
        stats = jaxbn.init_batch_stats(channels)
        return jaxbn.batch_norm_train(x, None, None, stats, **options)

    def make(array, b, h, w):
        first = 4 if options.get("axis") == (0, 1) else b
        last = (3, h, w) if "axis" in options else (h, w, 3)
        # Half precision holds these numbers exactly.
        return array(first, *last, dtype=dtype)

    draw = None
    if dtype == jnp.bfloat16:
        draw = lambda *shape: RNG.integers(-1, 2, shape)  # noqa: E731
    assert_exports(function, make, draw=draw)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sync": sync.FrozenAfter(1)},
    ],
    ids=str,
)
def test_groups_of_examples(options):
    state = jaxbn.init_batch_stats(3, sync=options.get("sync")).sync
    stats = STATS._replace(sync=state)

    def train(x):
        return jaxbn.batch_norm_train(x, SCALE, BIAS, stats, group_size=2, **options)

    def make(array, b, h, w):
        return (array(2 * b, h, w, 3),)

    assert_exports(gradients(train), make)


def test_groups_that_may_not_divide_the_batch():
    x = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), 3), jnp.float32)
    with pytest.raises(ValueError, match="must divide the batch of b examples, got 2"):
        jax.eval_shape(
            lambda x: jaxbn.batch_norm_train(x, None, None, STATS, group_size=2), x
        )


@pytest.mark.first_case
@pytest.mark.parametrize("name", ["debiased", "cumulative", "window"])
def test_estimators(name):
    stats = jaxbn.init_batch_stats(3, estimator=name)

    def function(x):
        return jaxbn.batch_norm_train(x, SCALE, BIAS, stats, estimator=name)

    assert_exports(function, images)


@pytest.mark.exhaustive
@pytest.mark.parametrize("max_rows", [0, 32])
def test_a_mapped_axis(monkeypatch, max_rows):
    """The merge is one of rows, or of sums beyond a number of devices."""
    monkeypatch.setattr(collectives, "MAX_ROWS", max_rows)

    def shard(x):
        return jaxbn.batch_norm_train(x, SCALE, BIAS, STATS, axis_name="devices")

    def make(array, b, h, w):
        return array(2, b, h, w, 3)

    assert_exports(jax.vmap(shard, axis_name="devices"), make)


def test_inference_and_moments():
    def make(array, b, h, w):
        return array(b, h, w, 3), array(b, h, 1, 1, dtype="bool")

    def function(args):
        x, mask = args
        y = jaxbn.batch_norm_inference(
            x, SCALE, BIAS, STATS, residual=x, activation="silu"
        )
        return y, jaxbn.batch_moments(x), jaxbn.batch_moments(x, mask=mask)

    assert_exports(function, make)


@pytest.mark.parametrize("form", ["two_pass", "sliced", "shifted"])
def test_large_values(form):
    settings = reduction.Settings((3,), form)
    shape = jax.ShapeDtypeStruct((*export.symbolic_shape("b, h, w"), 3), jnp.float32)
    local = jax.jit(lambda x: variance.local_moments(settings, x, None))
    program = export.export(local)(shape)
    x = np.float32(1e4 + RNG.standard_normal((16, 8, 8, 3)))
    actual = moments.count_per_channel(program.call(x))
    reference.assert_moments_close(actual, reference.moments(x))
    # The sum of these overflows where their mean does not.
    mean = program.call(np.full((16, 8, 8, 3), 3e38, np.float32)).mean
    np.testing.assert_allclose(mean, np.float32(3e38), rtol=1e-6)


@pytest.mark.first_case
@pytest.mark.parametrize("train", [False, True])
def test_linen(train):
    module = linen.BatchNorm(not train, activation="relu")
    variables = module.init(jax.random.key(0), jnp.zeros((2, 2, 2, 3)))

    def function(x):
        return module.apply(variables, x, mutable=["batch_stats"])

    assert_exports(function, images)


@pytest.mark.first_case
@pytest.mark.parametrize("train", [False, True])
def test_nnx(train):
    layer = jaxbn_nnx.BatchNorm(3, use_running_average=not train, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)

    def function(x):
        copy = nnx.merge(graph, state, copy=True)
        return copy(x), nnx.to_pure_dict(nnx.state(copy))

    assert_exports(function, images)


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("step", "masked"),
    [
        ("train", False),
        ("micro_batches", True),
        ("eval", False),
        pytest.param("train", True, marks=pytest.mark.exhaustive),
        pytest.param("micro_batches", False, marks=pytest.mark.exhaustive),
        pytest.param("eval", True, marks=pytest.mark.exhaustive),
        pytest.param("value_and_grad", False, marks=pytest.mark.exhaustive),
        pytest.param("value_and_grad", True, marks=pytest.mark.exhaustive),
    ],
)
def test_steps(step, masked):
    state = small_net.make_state()
    make_step = {
        "train": training.make_train_step,
        "micro_batches": functools.partial(training.make_train_step, micro_batches=2),
        "eval": training.make_eval_step,
        "value_and_grad": training.value_and_grad,
    }[step]
    take = make_step(small_net.loss_fn)

    def make(array, b, h, w):
        examples = 2 * b
        mask = {"mask": array(examples, dtype="bool")} if masked else {}
        return {"x": array(examples, 4), "y": array(examples, dtype="int32"), **mask}

    def function(batch):
        made = take(state, {**batch, "y": batch["y"] % 3})
        if step in ("train", "micro_batches"):
            new, metrics = made
            return new.params, new.batch_stats, metrics
        return made

    assert_exports(function, make)


def test_a_convolutional_net_in_training():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            for _ in range(2):
                x = nn.Conv(4, (3, 3), use_bias=False)(x)
                x = linen.BatchNorm(not train, activation="relu")(x)
            return nn.Dense(2)(x.mean((1, 2)))

    net = Net()
    variables = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)

    def function(x):
        def loss(params):
            y, new = net.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(jnp.sin(y)), new

        return jax.grad(loss, has_aux=True)(variables["params"])

    assert_exports(function, images)
