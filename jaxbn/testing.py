"""Checks of the invariants of Batch Normalization, for your own tests.

Each function raises `AssertionError` with an explanation if its invariant does not
hold. The functions look at values, so call them outside `jax.jit`.

  >>> import jaxbn
  >>> assert_valid_batch_stats(jaxbn.init_batch_stats(3))
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxbn import functional
from jaxbn.models import _batch_stats_by_path

__all__ = [
    "assert_in_sync",
    "assert_scale_invariant",
    "assert_standardized",
    "assert_valid_batch_stats",
]


def assert_valid_batch_stats(
    batch_stats: Any, dtype: jax.typing.DTypeLike = jnp.float32
) -> None:
    """Checks that running statistics are valid for training and inference.

    The mean and the variance of a layer have the same shape and are finite. The
    variance has the dtype `dtype` and is not negative. The mean has the dtype `dtype`
    or its complex counterpart.

    Args:
      batch_stats: `BatchStats`, or a Flax collection of any depth.
      dtype: the dtype of the variance.

    Raises:
      AssertionError: with the layer and the condition that does not hold.

    Example:
      >>> assert_valid_batch_stats({"bn": {"mean": jnp.zeros(3), "var": jnp.ones(3)}})
    """
    pairs = _batch_stats_by_path.pairs(batch_stats)
    if not pairs:
        raise AssertionError("`batch_stats` holds no pair of `mean` and `var`.")
    for path, (mean, var) in pairs.items():
        layer = "/".join(path) or "batch_stats"
        try:
            chex.assert_equal_shape((mean, var))
            chex.assert_type(var, dtype)
            chex.assert_type(jnp.real(mean), dtype)
            chex.assert_tree_all_finite((mean, var))
        except AssertionError as error:
            raise AssertionError(f"{layer}: {error}") from error
        if np.any(np.asarray(var) < 0):
            raise AssertionError(f"{layer}: negative variance {np.min(var)}.")


def assert_standardized(
    y: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike = 1.0,
    bias: jax.typing.ArrayLike = 0.0,
    *,
    axis: int | Sequence[int] = -1,
    mask: jax.typing.ArrayLike | None = None,
    atol: float = 1e-3,
) -> None:
    """Checks that an output has mean `bias` and standard deviation `|scale|`.

    In training this holds if the variance of the input is large compared with epsilon.

    Args:
      y: the output of a layer in training, `[N, ..., C]`.
      scale: `[C]` or a number.
      bias: `[C]` or a number.
      axis: channel axis or axes.
      mask: boolean, broadcastable to `y`; True for the elements that counted.
      atol: absolute tolerance, in units of `y`.

    Raises:
      AssertionError: with the difference in mean or standard deviation.

    Example:
      >>> assert_standardized(jnp.array([[1.0], [-1.0]]))
    """
    _, mean, var, _ = functional.batch_moments(jnp.asarray(y, jnp.float32), axis, mask)
    chex.assert_trees_all_close(
        {"mean": mean, "std": jnp.sqrt(var)},
        {
            "mean": jnp.broadcast_to(jnp.asarray(bias, jnp.float32), mean.shape),
            "std": jnp.abs(
                jnp.broadcast_to(jnp.asarray(scale, jnp.float32), var.shape)
            ),
        },
        atol=atol,
        rtol=0,
        custom_message="not standardised",
    )


def assert_scale_invariant(
    function: Callable[[jax.Array], jax.Array],
    x: jax.typing.ArrayLike,
    *,
    factor: float = 8.0,
    atol: float = 1e-3,
) -> None:
    """Checks that `function(factor * x) = function(x)`, as in BN((aW)u) = BN(Wu).

    Args:
      function: a layer, or a network as a function of one of its kernels.
      x: the argument of the function.
      factor: a positive number.
      atol: absolute tolerance for the effect of epsilon, in units of the output.

    Raises:
      AssertionError: with the largest difference.

    Example:
      >>> import jaxbn
      >>> stats = jaxbn.init_batch_stats(1)
      >>> normalize = lambda x: jaxbn.batch_norm_train(x, None, None, stats)[0]
      >>> assert_scale_invariant(normalize, jnp.arange(8.0)[:, None])

    References:
      Ioffe and Szegedy, arXiv:1502.03167, Section 3.3.
    """
    x = jnp.asarray(x)
    chex.assert_trees_all_close(
        function(factor * x),
        function(x),
        atol=atol,
        rtol=0,
        custom_message=f"not invariant to a factor of {factor}",
    )


def assert_in_sync(tree: Any, *, axis: int | None = None) -> None:
    """Checks that every device holds the same numbers, bit for bit.

    Args:
      tree: arrays replicated over devices, or stacked along `axis`.
      axis: the axis of the devices, as `jax.pmap` adds it. None compares the copies
        that each array has on the devices of this process.

    Raises:
      AssertionError: with the leaf and the device that differ.

    Example:
      >>> assert_in_sync({"mean": jnp.zeros((2, 3))}, axis=0)
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        first: dict[str, np.ndarray] = {}  # The first copy of each part.
        for device, part, copy in _copies(leaf, axis):
            copy = np.asarray(copy)
            expected = first.setdefault(part, copy)
            if not np.array_equal(expected, copy, equal_nan=copy.dtype.kind in "fc"):
                differ = np.count_nonzero(expected != copy)
                raise AssertionError(
                    f"{jax.tree_util.keystr(path)} on device {device} differs from the "
                    f"first copy in {differ} of {copy.size} elements."
                )


def _copies(leaf: Any, axis: int | None) -> Iterator[tuple[Any, str, Any]]:
    """Yields device, part and content of every copy."""
    if axis is not None:
        for device, copy in enumerate(jnp.moveaxis(leaf, axis, 0)):
            yield device, "whole", copy
    elif isinstance(leaf, jax.Array):
        for shard in leaf.addressable_shards:
            yield shard.device, str(shard.index), shard.data
