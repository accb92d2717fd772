"""The accelerators to compile for. Their compilers need a description, not a device."""

import importlib.metadata
from typing import Any

PLATFORMS = ("tpu", "gpu")

# The worker sets these variables before it imports jax.
ENVIRONMENT = {
    "tpu": {
        "JAX_PLATFORMS": "cpu",
        # Without this, libtpu asks the network for the kind of this machine.
        "TPU_SKIP_MDS_QUERY": "1",
        # Without this, a second process stops at a lock file.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    },
    "gpu": {
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        # Autotuning would time kernels, which needs a device. Triton depends on it for
        # the choice of tiles.
        "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
    },
}

_PACKAGES = {"tpu": ("libtpu",), "gpu": ("jax-cuda12-plugin", "jax-cuda13-plugin")}
_INSTALL = {"tpu": "jax[tpu]", "gpu": "jax[cuda12]"}

NAMES = {
    "v5e:2x2": "TPU v5e",
    "v5p:2x2x1": "TPU v5p",
    "v6e:2x2": "TPU v6e",
    "v4:2x2x1": "TPU v4",
    "v5e:2x4": "TPU v5e",
    "v5e:8x8": "TPU v5e",
    "v5e:16x16": "TPU v5e",
    "h200": "NVIDIA H200",
}
MEMORY = {"v5e:2x2": 15.75 * 2**30, "h200": 141e9}  # The bytes that a program can use.

# The report of the driver of an H200 (SXM), as XLA's GpuTargetConfigProto.
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: 4814260000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150121545728
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""


def jax_version() -> str:
    """Returns the version of JAX.

    JAX is not imported for it, because a worker must set its environment first.
    """
    return importlib.metadata.version("jax")


def compiler_version(platform: str) -> str | None:
    """Returns the version of the compiler for a platform; None if none is installed."""
    for package in _PACKAGES[platform]:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def missing(platform: str) -> str | None:
    """Returns a line that says what to install, or None if the compiler is there."""
    if compiler_version(platform):
        return None
    return (
        f"No {platform.upper()} compiler is installed; its cases are left out. To add "
        f"it: pip install '{_INSTALL[platform]}=={jax_version()}'"
    )


def describe(target: str) -> str:
    """Returns the description of a target on which the compiled program depends."""
    return _H200 if target == "h200" else target


def devices(target: str, count: int) -> list[Any]:
    """Returns devices that programs can be compiled for, but not run on.

    Args:
      target: one of `NAMES`.
      count: the number of devices, taken from the first; at most all of a TPU topology.
    """
    from jax.experimental import topologies

    if target == "h200":
        found = topologies.get_topology_desc(
            platform="cuda", topology=f"1x1x{count}", target_config=_H200
        ).devices
    else:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=target
        ).devices
    if count > len(found):
        raise ValueError(f"{target} has {len(found)} devices, not {count}.")
    return found[:count]
