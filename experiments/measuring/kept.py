"""What a function keeps for its backward pass."""

from collections.abc import Callable
from typing import Any

import jax


def kept(function: Callable[..., Any], *args: Any) -> list[jax.ShapeDtypeStruct]:
    """The arrays that the backward pass of `function` at `args` is given."""
    vjp = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args)
    return jax.tree.leaves(vjp)


def kept_bytes(function: Callable[..., Any], *args: Any) -> int:
    """Their size."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept(function, *args))
