"""Plain data parallelism: a mesh, shardings, and padding of incomplete batches.

  >>> mesh = data_mesh()
  >>> batch = pad_batch({"x": np.ones((6, 2))}, multiple=4)
  >>> batch["x"].shape, int(batch["mask"].sum())
  ((8, 2), 6)
  >>> batch = shard_batch(batch, mesh)

Put the state on all devices with `replicate(state, mesh)` and call the jitted steps of
`jaxbn.training` on both. Statistics and gradients are then those of the global batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbn._core import groups, moments, reduction
from jaxbn.models import _batch_stats_by_path

__all__ = [
    "data_mesh",
    "in_sync",
    "pad_batch",
    "replicate",
    "shard_batch",
    "sync_batch_stats",
]


def data_mesh(devices: Sequence[Any] | None = None, *, axis_name: str = "data") -> Mesh:
    """Returns a mesh with one Auto axis over `devices`.

    By default these are all devices of all processes.

    Example:
      >>> data_mesh(jax.devices()[:1]).axis_names
      ('data',)
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (axis_name,), axis_types=(AxisType.Auto,), devices=devices
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array to every device of the mesh.

    Args:
      tree: arrays of any kind, the same on all processes.
      mesh: a mesh of `data_mesh`.

    Example:
      >>> replicate({"weights": np.ones(3)}, data_mesh())["weights"].is_fully_replicated
      True
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    if mesh.is_multi_process:  # `device_put` refuses arrays of one device.
        return jax.jit(lambda tree: tree, out_shardings=sharding)(tree)
    return jax.device_put(tree, sharding)


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Splits the global batch over the devices along its first axis.

    Args:
      batch: this process's part of the batch, `[N, ...]` each. The parts of all
        processes have equal size and together form the global batch.
      mesh: a mesh of `data_mesh`.

    Returns:
      Arrays of the shape of the global batch.

    Raises:
      ValueError: if N is not a multiple of the number of this process's devices, or if
        an array is a scalar.

    Example:
      >>> shard_batch({"x": np.ones((16, 3))}, data_mesh())["x"].shape
      (16, 3)
    """
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    local = len(mesh.local_devices)
    _check_no_scalar(batch)
    for name, value in batch.items():
        if np.shape(value)[0] % local:
            raise ValueError(
                f"`batch[{name!r}]` must have a multiple of {local} examples, one part "
                f"per device, got shape {np.shape(value)}; use `pad_batch` first."
            )
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }


def pad_batch(batch: Mapping[str, Any], multiple: int) -> dict[str, np.ndarray]:
    """Repeats the first example until the size is a multiple, and masks the copies.

    Args:
      batch: arrays `[N, ...]`, N > 0; perhaps with a boolean `mask`, `[N]`.
      multiple: the new size is a multiple of this number, such as the number of devices
        or the size of a full batch.

    Returns:
      Arrays `[M, ...]` and `mask`, `[M]`, which is False for the copies. The copies are
      real data, so that no layer computes NaN from them.

    Raises:
      ValueError: if the batch is empty, if its arrays differ in N, or if one is a
        scalar.

    Example:
      >>> pad_batch({"x": np.array([5, 6, 7])}, multiple=4)["x"]
      array([5, 6, 7, 5])
    """
    _check_no_scalar(batch)
    arrays = {name: np.asarray(value) for name, value in batch.items()}
    sizes = {len(value) for value in arrays.values()}
    if len(sizes) != 1 or 0 in sizes:
        shapes = {name: value.shape for name, value in arrays.items()}
        raise ValueError(
            f"`batch` must hold arrays of one size [N, ...], N > 0, got {shapes}."
        )
    (size,) = sizes
    arrays.setdefault("mask", np.ones(size, bool))
    padding = -size % multiple
    padded = {
        name: np.concatenate([value, np.repeat(value[:1], padding, axis=0)])
        for name, value in arrays.items()
    }
    padded["mask"][size:] = False
    return padded


def _check_no_scalar(batch: Mapping[str, Any]) -> None:
    for name, value in batch.items():
        if np.ndim(value) == 0:
            raise ValueError(
                f"`batch[{name!r}]` must be an array [N, ...] with one entry per "
                f"example, got the scalar {value!r}; pass a value that is the same for "
                "all examples to the loss function in another way."
            )


def sync_batch_stats(batch_stats: Any, axis_name: reduction.AxisName) -> Any:
    """Returns the statistics of all replicas together, the same on each replica.

        mean = average over replicas of mean_r
        var  = average over replicas of (var_r + |mean_r - mean|^2)

    A plain `pmean` ignores that the means of the replicas differ. If the state of an
    estimator has a `weight`, replicas are weighted by it, so that a replica without a
    batch does not count. Without a `weight` all replicas count alike. Other arrays of
    the state are averaged; of integers the maximum is taken.

    Args:
      batch_stats: `BatchStats`, or a tree of variables that holds pairs of `mean` and
        `var`.
      axis_name: bound axis or tuple of axes of the replicas.

    Returns:
      A tree of the same structure, shapes and dtypes.

    Raises:
      ValueError: if `axis_name` is not bound.

    Example:
      >>> from jaxbn import BatchStats
      >>> stats = BatchStats(jnp.array([[0.0], [2.0]]), jnp.ones((2, 1)))
      >>> merge = lambda s: sync_batch_stats(s, "replica")
      >>> jax.vmap(merge, axis_name="replica")(stats).var[0]
      Array([2.], dtype=float32)
    """
    groups.axis_size(axis_name)  # Raises if the name is not bound.

    def merge(state: dict[str, jax.Array]) -> dict[str, jax.Array]:
        mean, var = state["mean"], state["var"]
        average = _average(state.get("weight"), mean.ndim, axis_name)
        merged = average(mean)
        spread = average(var + moments.abs_square(mean - merged))
        others = {name: _together(leaf, axis_name) for name, leaf in state.items()}
        return {**others, "mean": merged, "var": spread}

    return _batch_stats_by_path.map_states(merge, batch_stats)


def _average(
    weight: jax.Array | None, ndim: int, axis_name: reduction.AxisName
) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that averages `[C]` arrays over the replicas.

    Args:
      weight: the weight of this replica, `[C]`, or of its slots, `[C, k]`. None: all
        replicas count alike.
      ndim: the number of channel axes.
      axis_name: bound axis or axes of the replicas.
    """
    if weight is None:
        return lambda values: jax.lax.pmean(values, axis_name)
    # The slots come last, also where layers are stacked along a new axis.
    weight = jnp.sum(weight, tuple(range(ndim, weight.ndim)))
    total = jax.lax.psum(weight, axis_name)
    # Where no replica has seen a batch, all count alike.
    weight = jnp.where(total > 0, weight, 1)
    total = jnp.where(total > 0, total, jax.lax.psum(1, axis_name))

    def average(values: jax.Array) -> jax.Array:
        return (jax.lax.psum(weight * values, axis_name) / total).astype(values.dtype)

    return average


def _together(leaf: jax.Array, axis_name: reduction.AxisName) -> jax.Array:
    """Returns the average over replicas; for integers, the maximum."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jax.lax.pmean(leaf, axis_name)
    return jax.lax.pmax(leaf, axis_name)


def in_sync(tree: Any, axis_name: reduction.AxisName) -> jax.Array:
    """Returns whether all replicas hold the same numbers, bit for bit.

    Args:
      tree: arrays, one copy per replica.
      axis_name: bound axis or tuple of axes of the replicas.

    Returns:
      A boolean of shape (), the same on each replica. It is False if there is a NaN.

    Raises:
      ValueError: if `axis_name` is not bound.

    Example:
      >>> same = lambda x: in_sync(x, "replica")
      >>> jax.vmap(same, axis_name="replica")(jnp.array([[1.0, 2.0], [1.0, 3.0]]))
      Array([False, False], dtype=bool)
    """
    groups.axis_size(axis_name)
    differ = jnp.zeros((), jnp.int32)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        parts = (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)
        for part in parts:
            low, high = jax.lax.pmin(part, axis_name), jax.lax.pmax(part, axis_name)
            differ += jnp.sum(~(low == high), dtype=jnp.int32)
    return differ == 0
