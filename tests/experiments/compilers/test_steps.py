import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.compilers import cases, steps
from experiments.library.accelerators import lists, measures
from experiments.networks import norms


def lower(case):
    return steps.lower(case, jax.devices()[: case.devices])


@pytest.mark.first_case
@pytest.mark.parametrize("norm", norms.ALL)
@pytest.mark.parametrize("dtype", lists.DTYPES)
def test_every_normalisation_lowers(norm, dtype, tiny):
    program = "small_network" if norms.ALL[norm].fields else "layer"
    activation = "leaky_relu" if norm == "jaxbn, in_place" else "relu"
    case = cases.Case(program=program, norm=norm, dtype=dtype, activation=activation)
    text = lower(case).as_text()
    assert {"float32": "f32", "bfloat16": "bf16"}[dtype] in text


@pytest.mark.exhaustive
def test_recomputed_blocks_have_barriers(tiny):
    case = cases.Case(program="short_resnet", norm="jaxbn, recomputed")
    assert "optimization_barrier" in lower(case).as_text()


def test_inference_moves_nothing(tiny):
    case = cases.Case(program="inference", norm="flax")
    (logits,) = jax.tree.leaves(lower(case).out_info)
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("parameters", ["float32", "cast"])
def test_what_the_network_is_given(parameters, tiny):
    """Cast: a network without `dtype` whose parameters have that of the case."""
    case = cases.Case(program="short_resnet", parameters=parameters)
    given = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm):
            params = context.module.variables.get("params", {})
            given.update({name: leaf.dtype for name, leaf in params.items()})
            given["dtype"] = context.module.dtype
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        new, *_ = lower(dataclasses.replace(case, norm="flax")).out_info
    computing = jnp.bfloat16 if parameters == "cast" else jnp.float32
    assert given == {
        "scale": computing,
        "bias": computing,
        "dtype": None if parameters == "cast" else jnp.bfloat16,
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}


def run(case):
    """New parameters and statistics after one step on the same eight images."""
    lowered = lower(case)
    arguments, _ = lowered.args_info
    rng = np.random.default_rng(0)
    values = [
        rng.standard_normal(info.shape).astype(info.dtype)
        if jnp.issubdtype(info.dtype, jnp.floating)
        else rng.integers(0, 3, info.shape, info.dtype)
        for info in jax.tree.leaves(arguments)
    ]
    values = jax.tree.unflatten(jax.tree.structure(arguments), values)
    compiled = lowered.compile()
    shardings, _ = compiled.input_shardings
    return compiled(*jax.device_put(values, shardings))


@pytest.mark.exhaustive
@pytest.mark.parametrize("norm", ["flax", "jaxbn"])
@pytest.mark.parametrize(
    "program", ["layer", pytest.param("small_network", marks=pytest.mark.exhaustive)]
)
def test_several_devices_take_the_step_of_one(norm, program, tiny):
    options = {"program": program, "norm": norm, "dtype": "float32"}
    expected = run(cases.Case(images=8, **options))
    for style in ("jit", "shard_map"):
        found = run(cases.Case(style=style, devices=4, images=2, **options))
        chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("style", "statistics"),
    [("shard_map", "groups"), ("shard_map", "local"), ("jit_mesh", "local")],
)
def test_groups_and_local_statistics_lower(style, statistics, tiny):
    case = cases.Case(program="layer", style=style, statistics=statistics, devices=8)
    found = measures.hlo.collectives(lower(case).compile().as_text())
    counts = measures.count(found)
    if (style, statistics) == ("shard_map", "local"):
        assert (counts["forward"], counts["backward"]) == (0, 0)
    assert counts["backward"] + counts["gradients"] >= 1
