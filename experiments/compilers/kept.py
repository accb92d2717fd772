"""Finds the arrays that a function keeps for its backward pass."""

from collections.abc import Callable
from typing import Any

import jax


def kept(function: Callable[..., Any], *args: Any) -> list[jax.ShapeDtypeStruct]:
    """Returns the arrays that `function` at `args` keeps for its backward pass."""
    vjp = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args)
    return jax.tree.leaves(vjp)


def kept_bytes(function: Callable[..., Any], *args: Any) -> int:
    """Returns the total size of these arrays in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept(function, *args))
