"""Barriers that stop XLA from merging or storing intermediate arrays.

XLA's fusion decides how often arrays are read and written. Where it decides badly, an
`optimization_barrier` hides from it that two arrays are the same. On all other
platforms these functions return their arguments, and the program contains no barrier.
"""

from typing import Any

import jax

from jaxbn._core import reduction


def widened_alone(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the arrays, each for a cast that only one sum uses.

    XLA:CPU casts inside the sum if only that sum uses the cast. Otherwise it stores the
    float32 copy.
    """
    if all(array.dtype == reduction.reduction_dtype(array.dtype) for array in arrays):
        return arrays
    # There is one barrier for all arrays, because XLA would merge several equal ones.
    return _barrier(lambda *given: jax.lax.optimization_barrier(given), arrays, "cpu")


def unshared(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns copies whose results XLA:CPU computes again instead of storing them."""
    # Each array has its own barrier, because under shard_map the arrays may vary over
    # different axes.
    return _barrier(
        lambda *given: tuple(jax.lax.optimization_barrier(each) for each in given),
        arrays,
        "cpu",
    )


def rounded(array: jax.Array) -> jax.Array:
    """Returns the array; later kernels then read it in its own dtype.

    XLA:GPU would otherwise store the wider array from which it was rounded, for the
    backward pass or for the next residual.
    """
    barrier = jax.lax.optimization_barrier
    return _barrier(lambda given: (barrier(given),), (array,), "cuda", "rocm")[0]


def _barrier(function, arrays: tuple[jax.Array, ...], *platforms: str):
    same = lambda *given: given  # noqa: E731
    chosen: dict[str, Any] = dict.fromkeys(platforms, function)
    return jax.lax.platform_dependent(*arrays, default=same, **chosen)
