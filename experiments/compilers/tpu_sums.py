"""Evaluates a function with sums in the order in which a TPU adds.

A TPU adds the rows of an array into eight accumulators per lane, one row after the
other, and then adds the accumulators. XLA:CPU adds in another order. A form of the
variance that is exact on a CPU may therefore lose digits on a TPU.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

ACCUMULATORS = 8


def in_order_of_tpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that evaluates `function` operation by operation.

    It takes arrays, and computes every `jnp.sum` with `rows_added`.
    """

    def evaluate(*args: jax.Array) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        results = _evaluate(closed.jaxpr, closed.consts, args)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return evaluate


def rows_added(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns the sum over `axes` in the order of a TPU, in the dtype of `x`."""
    rows = np.moveaxis(np.asarray(x), axes, range(len(axes)))
    rest = rows.shape[len(axes) :]
    rows = rows.reshape(-1, *rest)
    missing = np.zeros((-len(rows) % ACCUMULATORS, *rest), rows.dtype)
    rows = np.concatenate([rows, missing]).reshape(-1, ACCUMULATORS, *rest)
    accumulated = np.add.accumulate(rows, 0)[-1]
    return jnp.asarray(np.add.accumulate(accumulated, 0)[-1])


def _evaluate(jaxpr: Any, consts: Any, args: Any) -> list[jax.Array]:
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        inputs = [
            a.val if isinstance(a, core.Literal) else values[a] for a in equation.invars
        ]
        results = _applied(equation, inputs)
        values |= dict(zip(equation.outvars, results, strict=True))
    return [values[a] for a in jaxpr.outvars]


def _applied(equation: Any, inputs: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "reduce_sum":
        return [rows_added(inputs[0], params["axes"])]
    if name == "cond":
        branch = params["branches"][int(inputs[0])]
        return _evaluate(branch.jaxpr, branch.consts, inputs[1:])
    if name in ("scan", "while"):
        raise NotImplementedError(f"A loop, {name}, is not evaluated in this order.")
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if inner is not None:
        closed = hasattr(inner, "consts")
        return _evaluate(
            inner.jaxpr if closed else inner, inner.consts if closed else (), inputs
        )
    results = equation.primitive.bind(*inputs, **params)
    return results if equation.primitive.multiple_results else [results]
