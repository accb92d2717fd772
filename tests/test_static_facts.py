"""Shapes are asked of arrays, and not of functions that a converter may replace.

A program that converts a model to another format, such as jax2onnx, replaces functions
of `jax.numpy` while it traces. Then `jnp.shape` returns a traced array, by which no
Python code can decide anything. `x.shape` and `np.shape(x)` stay what they are.
"""

import ast
import contextlib
import pathlib
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from jaxbn import linen
from jaxbn import nnx as jaxbn_nnx

REPLACED = ("shape", "ndim", "size")
RNG = np.random.default_rng(0)


@contextlib.contextmanager
def replaced():
    """Makes the functions fail as long as it lasts."""
    with contextlib.ExitStack() as stack:
        for name in REPLACED:
            error = AssertionError(f"jnp.{name} was called")
            patch = mock.patch.object(jnp, name, side_effect=error)
            stack.enter_context(patch)
        yield


def test_no_module_names_them():
    found = [
        f"{path.name}:{node.lineno}"
        for path in pathlib.Path(jaxbn.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("jnp", name) for name in REPLACED}
    ]
    assert not found, f"Ask the array or NumPy instead, at {found}."


def inference(x):
    return jaxbn.batch_norm_inference(x, None, None, jaxbn.init_batch_stats(3))


def training(x):
    stats = jaxbn.init_batch_stats(3)
    return jaxbn.batch_norm_train(
        x, np.ones(3), np.zeros(3), stats, mask=x[..., :1] > 0, residual=x
    )


def gradient(x):
    return jax.grad(lambda x: jnp.sum(jnp.sin(training(x)[0])))(x)


def groups(x):
    stats = jaxbn.init_batch_stats(3)
    return jaxbn.batch_norm_train(x, None, None, stats, group_size=2)


def linen_layer(x, train):
    module = linen.BatchNorm(not train, activation="relu")
    variables = {
        "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
        "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
    }
    return module.apply(variables, x, mutable=["batch_stats"])


def nnx_layer(x, train):
    layer = jaxbn_nnx.BatchNorm(3, use_running_average=not train, rngs=nnx.Rngs(0))
    return layer(x), layer.mean[...], layer.var[...]


FUNCTIONS = {
    "inference": inference,
    "training": training,
    "gradient": gradient,
    "groups": groups,
    "moments": jaxbn.batch_moments,
    "linen in evaluation": lambda x: linen_layer(x, train=False),
    "linen in training": lambda x: linen_layer(x, train=True),
    "nnx in evaluation": lambda x: nnx_layer(x, train=False),
    "nnx in training": lambda x: nnx_layer(x, train=True),
}


@pytest.mark.first_case
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gives_the_same_without_them(name):
    # No other test has a batch of this shape, whose trace JAX would find again.
    x = RNG.standard_normal((6, 13, len(name), 3)).astype(np.float32)
    with replaced():
        actual = jax.jit(lambda x: FUNCTIONS[name](x))(x)
    chex.assert_trees_all_close(actual, jax.jit(FUNCTIONS[name])(x))
