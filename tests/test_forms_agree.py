"""Linen's layer, NNX's and the function are one: bit for bit, whatever is asked for."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx

FLOATS = "float32", "bfloat16", "float16"


@st.composite
def cases(draw):
    """Input, mask, residual, whether to train, parameters and options."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
    ndim = len(shape)
    axes = draw(
        st.sets(st.integers(-ndim, -1), min_size=1, max_size=ndim - 1).map(sorted)
    )
    x_dtype = draw(st.sampled_from([*FLOATS, "complex64", "int32"]))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    x = 3 * rng.standard_normal(shape) + draw(st.sampled_from([0, 5]))
    if x_dtype == "complex64":
        x = x + 1j * rng.standard_normal(shape)

    mask_sizes = draw(st.sampled_from([None, shape, (*shape[:-1], 1), (1,) * ndim]))
    mask = None if mask_sizes is None else rng.random(mask_sizes) < 0.7
    residual = None
    if x_dtype in FLOATS and draw(st.booleans()):
        residual = jnp.asarray(rng.standard_normal(shape), x_dtype)

    options = {
        "axis": axes[0] if len(axes) == 1 else tuple(axes),
        "momentum": draw(st.sampled_from([0.0, 0.9, 1.0])),
        "epsilon": draw(st.sampled_from([1e-5, 0.1])),
        "unbiased": draw(st.booleans()),
        "variance": draw(st.sampled_from(["auto", "unconditional", "fast"])),
    }
    if x_dtype != "complex64":
        names = [None, "relu", "leaky_relu", "silu", "gelu"]
        options["activation"] = draw(st.sampled_from(names))
        if options["activation"] in (None, "leaky_relu"):
            options["in_place"] = draw(st.booleans())
    if -ndim not in axes:  # Groups are parts of the first axis.
        sizes = [d for d in range(1, shape[0] + 1) if shape[0] % d == 0]
        options["group_size"] = draw(st.sampled_from([None, *sizes]))

    parameters = {name: draw(st.booleans()) for name in ("use_scale", "use_bias")}
    parameters["param_dtype"] = draw(st.sampled_from(["float32", "bfloat16"]))
    # Without a dtype NNX promotes the statistics too, as in Flax: the same for all only
    # where a parameter is as wide as they are.
    wide = any(parameters[name] for name in ("use_scale", "use_bias"))
    dtypes = [None] if wide and parameters["param_dtype"] == "float32" else []
    if x_dtype == "complex64":
        parameters["dtype"] = None
    else:
        parameters["dtype"] = draw(st.sampled_from([*dtypes, *FLOATS]))
    train = draw(st.booleans())
    return jnp.asarray(x, x_dtype), mask, residual, train, parameters, options


def make_layer(shape, axis, train, **options):
    """A layer of NNX whose variables are not those of a new one."""
    axes = (axis,) if isinstance(axis, int) else axis
    features = tuple(shape[a] for a in axes)
    options |= {"axis": axis, "use_running_average": not train}
    layer = jaxbn.nnx.BatchNorm(features, rngs=nnx.Rngs(0), **options)
    for place, name in enumerate(("mean", "var", "scale", "bias")):
        variable = getattr(layer, name)
        if variable is not None:
            moved = np.arange(variable[...].size).reshape(features) / 8 + place / 16
            variable[...] = variable[...] + jnp.asarray(moved, variable[...].dtype)
    return layer


def split(layer):
    """The variables of a layer as Linen has them."""
    values = nnx.to_pure_dict(nnx.state(layer))
    stats = {name: values.pop(name) for name in ("mean", "var")}
    return {"params": values, "batch_stats": stats}


def check(x, mask, residual, train, parameters, options):
    layer = make_layer(x.shape, train=train, **parameters, **options)
    variables = split(layer)
    y = layer(x, mask=mask, residual=residual)
    stats = split(layer)["batch_stats"]

    module = jaxbn.linen.BatchNorm(not train, **parameters, **options)
    in_linen, updates = module.apply(
        variables, x, mask=mask, residual=residual, mutable=["batch_stats"]
    )
    chex.assert_trees_all_equal_dtypes(in_linen, y)
    chex.assert_trees_all_equal(in_linen, y)
    chex.assert_trees_all_equal_shapes_and_dtypes({**updates["batch_stats"]}, stats)
    chex.assert_trees_all_equal({**updates["batch_stats"]}, stats)

    given = (variables["params"].get(name) for name in ("scale", "bias"))
    before = jaxbn.BatchStats(**variables["batch_stats"])
    if jnp.iscomplexobj(x):  # Which layers see to by themselves.
        before = before._replace(mean=before.mean + 0j)
    if train:
        by_function, after = jaxbn.batch_norm_train(
            x, *given, before, mask=mask, residual=residual, dtype=y.dtype, **options
        )
        chex.assert_trees_all_equal({"mean": after.mean, "var": after.var}, stats)
    else:
        shared = ("axis", "epsilon", "activation")
        by_function = jaxbn.batch_norm_inference(
            x, *given, before, residual=residual, dtype=y.dtype,
            **{name: options[name] for name in shared if name in options},
        )  # fmt: skip
    chex.assert_trees_all_equal_dtypes(by_function, y)
    chex.assert_trees_all_equal(by_function, y)


@pytest.mark.filterwarnings("ignore:.*one value per channel")
@hypothesis.given(cases())
@hypothesis.settings(deadline=None, max_examples=6)
def test_random_cases(case):
    check(*case)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*one value per channel")
@hypothesis.given(cases())
@hypothesis.settings(deadline=None, max_examples=30)
def test_many_random_cases(case):
    check(*case)
