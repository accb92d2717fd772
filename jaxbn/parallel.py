"""Plain data parallelism: a mesh, shardings, and padding of incomplete batches.

  >>> mesh = data_mesh()
  >>> batch = pad_batch({"x": np.ones((6, 2))}, multiple=4)
  >>> batch["x"].shape, int(batch["mask"].sum())
  ((8, 2), 6)
  >>> batch = shard_batch(batch, mesh)

Put the state on all devices with `replicate(state, mesh)` and call the jitted steps of
`jaxbn.training` on both: statistics and gradients are global by construction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: Sequence[Any] | None = None, *, axis_name: str = "data") -> Mesh:
    """Returns a mesh with one Auto axis over `devices`.

    By default these are all devices of all processes.
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
      multiple: the new size is a multiple of this. It is for instance the number of
        devices, or the size of a full batch.

    Returns:
      Arrays `[M, ...]` and `mask`, `[M]`, which is False for the copies. The copies are
      real data, so that no layer computes NaN from them.

    Raises:
      ValueError: if the batch is empty, if its arrays differ in N, or if one is a
        scalar.
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
                f"example, got the scalar {value!r}; give what is the same for all "
                "examples to the loss function in another way."
            )
