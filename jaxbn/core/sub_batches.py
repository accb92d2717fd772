"""Splits a batch into parts with statistics of their own, along a new channel axis.

Without an axis name, groups are such parts (Ghost Batch Normalization). This includes
the parts that devices hold of an array that is sharded under jit. If the parts follow
the shards, there is no collective.
"""

from typing import NamedTuple

import jax

from jaxbn.core import reduction


class SubBatches(NamedTuple):
    """A batch whose first reduced axis is split into (groups, examples)."""

    x: jax.Array
    mask: jax.Array | None
    feature_axes: tuple[int, ...]  # The axis of the groups is one of them.
    position: int  # The position of the groups in `feature_axes`.


def split(
    x: jax.Array,
    mask: jax.Array | None,
    feature_axes: tuple[int, ...],
    group_size: int,
) -> SubBatches:
    """Makes the groups another channel axis, so that statistics are `[groups, C]`.

    Args:
      x: `[N, ..., C]`; the channel axes may stand anywhere.
      mask: boolean of the rank of `x`, or None.
      feature_axes: canonical channel axes.
      group_size: examples per group, a divisor of N.
    """
    axis = reduction.reduction_axes(x.ndim, feature_axes)[0]
    size = x.shape[axis]

    def split_array(array: jax.Array) -> jax.Array:
        groups = size // group_size if array.shape[axis] == size else 1
        each = array.shape[axis] // max(groups, 1)
        shape = (*array.shape[:axis], groups, each, *array.shape[axis + 1 :])
        return array.reshape(shape)

    # Channel axes behind the batch axis move back by one.
    axes = tuple(sorted([axis, *(a + (a > axis) for a in feature_axes)]))
    mask = None if mask is None else split_array(mask)
    return SubBatches(split_array(x), mask, axes, axes.index(axis))
