"""Groups that share statistics: of devices along a mapped axis, or parts of a batch."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax

from jaxbn.core import moments, reduction

GroupSize = int | Literal["local"]


def device_groups(
    axis_index_groups: Sequence[Sequence[int]] | None,
    group_size: GroupSize | None,
    size: int,
) -> reduction.AxisIndexGroups | None:
    """Groups of the indices 0 to `size`, or None for all together.

    Args:
      axis_index_groups: the groups themselves, or None.
      group_size: neighbours per group; "local" is 1.
      size: of the mapped axis.

    Raises:
      ValueError: if groups overlap, leave an index out or differ in size, or `size` is
        no multiple of `group_size`.
    """
    if axis_index_groups is None:
        if group_size is None:
            return None
        group_size = 1 if group_size == "local" else group_size
        if group_size < 1 or size % group_size:
            raise ValueError(
                f"`group_size` must divide the {size} devices of `axis_name`, got "
                f"{group_size}."
            )
        indices = range(size)
        axis_index_groups = [
            indices[start : start + group_size] for start in range(0, size, group_size)
        ]
    groups = tuple(tuple(int(index) for index in group) for group in axis_index_groups)
    members = [index for group in groups for index in group]
    repeated = sorted({index for index in members if members.count(index) > 1})
    missing = sorted(set(range(size)) - set(members))
    outside = sorted(set(members) - set(range(size)))
    sizes = sorted({len(group) for group in groups})
    if repeated or missing or outside or len(sizes) != 1:
        raise ValueError(
            f"`axis_index_groups` must part the indices 0 to {size - 1} into groups of "
            f"one size, got {groups}: repeated {repeated}, missing {missing}, outside "
            f"{outside}, sizes {sizes}."
        )
    return None if len(groups) == 1 else groups


class SubBatches(NamedTuple):
    """A batch whose first reduced axis is split into (groups, examples)."""

    x: jax.Array
    mask: jax.Array | None
    feature_axes: tuple[int, ...]  # The axis of the groups among them.
    position: int  # Of the groups among the feature axes.


def split_batch(
    x: jax.Array,
    mask: jax.Array | None,
    feature_axes: tuple[int, ...],
    group_size: GroupSize,
) -> SubBatches:
    """Makes the groups another channel axis: statistics of their own, `[groups, C]`.

    Args:
      x: `[N, ..., C]`, its channels anywhere.
      mask: boolean of the rank of `x`, or None.
      feature_axes: canonical channel axes.
      group_size: examples per group; "local": those that one device holds.

    Raises:
      ValueError: if the batch is no multiple of `group_size`, or "local" is not clear.
    """
    reduced = reduction.reduction_axes(x.ndim, feature_axes)
    if not reduced:
        raise ValueError(
            f"`group_size` needs a batch axis, got `x` of shape {x.shape}."
        )
    axis = reduced[0]
    size = x.shape[axis]
    if group_size == "local":
        shards = _shards(x, axis)
        if size % shards:
            raise ValueError(
                f"`group_size` 'local' needs a batch that its {shards} devices divide, "
                f"got {size} examples; pad the batch and mask what was added, or give "
                "the number of examples per group."
            )
        group_size = max(size // shards, 1)
    if group_size < 1 or size % group_size:
        raise ValueError(
            f"`group_size` must divide the batch of {size} examples, got {group_size}."
        )
    shards = reduction.explicit_shards(x, axis)
    if (size // group_size) % shards:
        raise ValueError(
            f"`group_size` {group_size} makes groups that span the {shards} shards of "
            f"{size} examples, which a mesh of Explicit axes rejects; use at most "
            f"{size // shards}, or Auto axes (`jax.sharding.auto_axes`)."
        )

    def split(array: jax.Array) -> jax.Array:
        groups = size // group_size if array.shape[axis] == size else 1
        each = array.shape[axis] // max(groups, 1)
        shape = (*array.shape[:axis], groups, each, *array.shape[axis + 1 :])
        return array.reshape(shape)

    axes = tuple(sorted([axis, *(a + (a > axis) for a in feature_axes)]))
    return SubBatches(
        split(x), None if mask is None else split(mask), axes, axes.index(axis)
    )


def _shards(x: jax.Array, axis: int) -> int:
    """Devices over which an axis is split under jit."""
    mesh = jax.sharding.get_abstract_mesh()
    auto = [
        size
        for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
        if size > 1 and kind == jax.sharding.AxisType.Auto
    ]
    if len(auto) > 1:
        raise ValueError(
            f"`group_size` 'local' is not clear on a mesh of {dict(mesh.shape)}, whose "
            "axes are not Explicit; give the number of examples per device."
        )
    return reduction.explicit_shards(x, axis) * math.prod(auto)


def pool(groups: moments.Moments, feature_ndim: int) -> moments.Moments:
    """Moments of all groups together: the variance of their means is part of theirs.

    Args:
      groups: `[groups, C]` each, or `[C]`, which is returned as it is.
      feature_ndim: channel axes.
    """
    if groups.mean.ndim == feature_ndim:
        return groups
    return moments.merge_rows(groups)
