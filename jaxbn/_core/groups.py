"""The groups of devices, or of examples, that share statistics.

With an axis name, groups are devices along it. Without an axis name they are parts of
the batch (Ghost Batch Normalization). `split_into_groups` gives these parts a channel
axis of their own. A part may be what one device holds of an array that is sharded under
jit. If no part spans several devices, there is no collective.
"""

import math
import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.core
import numpy as np
from jax.sharding import AxisType

from jaxbn._core import reduction

GroupSize = int | Literal["local"]


def as_devices(
    axis_name: reduction.AxisName | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
    group_size: GroupSize | None,
) -> reduction.Devices | None:
    """Returns the devices along a mapped axis and their groups.

    Without an axis name the result is None.

    Args:
      axis_name: bound name, or tuple or list of names.
      axis_index_groups: as in `batch_norm_train`.
      group_size: as in `batch_norm_train`.

    Raises:
      ValueError: if the name is not bound; if there are groups but no name, or both
        groups and a group size; if groups overlap, differ in size or leave a device
        out; if the group size does not divide the devices.
      TypeError: if `group_size` is neither an integer nor "local".
    """
    group_size = _as_group_size(group_size)
    if group_size is not None and axis_index_groups is not None:
        raise ValueError(
            "Give `axis_index_groups` or `group_size`, not both, got "
            f"{axis_index_groups} and {group_size!r}."
        )
    if axis_name is None:
        if axis_index_groups is not None:
            raise ValueError(
                "`axis_index_groups` needs an `axis_name` whose indices it groups, got "
                f"{axis_index_groups} and no name; give the name of the mapped axis."
            )
        return None
    axis_name = tuple(axis_name) if isinstance(axis_name, list) else axis_name
    size = axis_size(axis_name)
    if group_size is not None:
        axis_index_groups = _neighbours(group_size, size)
    if axis_index_groups is None:
        return reduction.Devices(axis_name, size)
    groups = tuple(tuple(int(index) for index in group) for group in axis_index_groups)
    _check_partition(groups, size)
    parted = groups if len(groups) > 1 else None
    return reduction.Devices(axis_name, size, parted)


def axis_size(axis_name: reduction.AxisName) -> int:
    """Returns the number of devices along a bound axis name or tuple of names.

    Raises:
      ValueError: if a name is not bound.
    """
    names = axis_name if isinstance(axis_name, tuple | list) else (axis_name,)
    try:
        return math.prod(jax.lax.axis_size(name) for name in names)
    except NameError as error:
        raise ValueError(
            f"`axis_name` must be bound by an enclosing pmap, vmap or shard_map, got "
            f"{axis_name!r}, which is not bound here. Leave it out under plain jit, "
            "where statistics are global by construction, and while initialising."
        ) from error


def check_split(x: jax.Array, devices: reduction.Devices | None) -> None:
    """Checks that the batch is split over every name, if shard_map keeps track of that.

    Raises:
      ValueError: if `x` is the same on all devices along a name.
    """
    if devices is None:
        return
    varying = reduction.varying_axes(x)
    axis_name = devices.axis_name
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    manual = jax.sharding.get_abstract_mesh().manual_axes
    same = [name for name in names if name in manual and name not in varying]
    # If nothing varies, `x` is not split at all or shard_map does not keep track.
    if varying and same:
        raise ValueError(
            f"`axis_name` must name axes over which `x` is split, got {axis_name!r}; "
            f"`x` is split over {sorted(varying)} and the same along {same}."
        )


def examples_per_group(
    x: jax.Array, feature_axes: tuple[int, ...], group_size: GroupSize
) -> int:
    """Returns how many examples share statistics if a batch is normalised in parts.

    Raises:
      ValueError: if this number does not divide the batch, if groups would span shards
        of a mesh of Explicit axes, or if the mesh does not determine the size of
        "local".
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
                f"got {size} examples; pad the batch and mask the padding, or give "
                "the number of examples per group."
            )
        return max(size // shards, 1)
    group_size = operator.index(group_size)
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
    return group_size


class GroupedBatch(NamedTuple):
    """A batch whose first reduced axis is split into (groups, examples)."""

    x: jax.Array
    mask: jax.Array | None
    feature_axes: tuple[int, ...]  # The axis of the groups is one of them.
    position: int  # The position of the groups in `feature_axes`.


def split_into_groups(
    x: jax.Array,
    mask: jax.Array | None,
    feature_axes: tuple[int, ...],
    group_size: int,
) -> GroupedBatch:
    """Makes the groups another channel axis, so that statistics are `[groups, C]`.

    Args:
      x: `[N, ..., C]`; the channel axes may stand anywhere.
      mask: boolean of the rank of `x`, or None.
      feature_axes: canonical channel axes.
      group_size: the number of examples per group, a divisor of N.
    """
    axis = reduction.reduction_axes(x.ndim, feature_axes)[0]
    size = x.shape[axis]

    def split(array: jax.Array) -> jax.Array:
        groups = size // group_size if array.shape[axis] == size else 1
        each = array.shape[axis] // max(groups, 1)
        shape = (*array.shape[:axis], groups, each, *array.shape[axis + 1 :])
        return array.reshape(shape)

    # Channel axes behind the batch axis move back by one.
    axes = tuple(sorted([axis, *(a + (a > axis) for a in feature_axes)]))
    mask = None if mask is None else split(mask)
    return GroupedBatch(split(x), mask, axes, axes.index(axis))


def _as_group_size(group_size: GroupSize | None) -> GroupSize | None:
    if group_size is None or (isinstance(group_size, str) and group_size == "local"):
        return group_size
    whole = isinstance(group_size, int | np.integer)
    if not whole or isinstance(group_size, bool):
        raise TypeError(f"`group_size` must be an int or 'local', got {group_size!r}.")
    return int(group_size)


def _neighbours(group_size: GroupSize, size: int) -> list[range]:
    """Returns groups of neighbouring devices; "local" means groups of one device."""
    group_size = 1 if group_size == "local" else operator.index(group_size)
    if group_size < 1 or size % group_size:
        raise ValueError(
            f"`group_size` must divide the {size} devices of `axis_name`, got "
            f"{group_size}."
        )
    return [range(start, start + group_size) for start in range(0, size, group_size)]


def _check_partition(groups: reduction.AxisIndexGroups, size: int) -> None:
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


def _shards(x: jax.Array, axis: int) -> int:
    """Returns the number of devices over which an axis of the array is split."""
    if not isinstance(x, jax.core.Tracer):
        return x.shape[axis] // x.sharding.shard_shape(x.shape)[axis] if x.size else 1
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:  # The type of `x` may have a mesh.
        mesh = jax.typeof(x).sharding.mesh
    if mesh.empty and len(jax.devices()) > 1:
        raise ValueError(
            "`group_size` 'local' needs a mesh, got a traced program without one; "
            "trace it within `jax.set_mesh(mesh)`, use a mesh of Explicit axes or "
            "give the number of examples per device."
        )
    auto = [
        size
        for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
        if size > 1 and kind == AxisType.Auto
    ]
    if len(auto) > 1:
        raise ValueError(
            f"`group_size` 'local' is ambiguous on a mesh of {dict(mesh.shape)} with "
            "several Auto axes; give the number of examples per device."
        )
    return reduction.explicit_shards(x, axis) * math.prod(auto)
