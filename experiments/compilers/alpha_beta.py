"""An alpha-beta model of the time that synchronised statistics cost.

Every normalisation layer adds two collectives to a step, one forward and one backward.
Each waits for the layer before it, so the cost is latency and not bandwidth.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.networks import models
from jaxbn._core import collectives


def nccl_seconds(devices: int, size: int) -> float:
    """Returns the seconds of one all-reduce over GPUs in nodes of eight.

    The latencies come from NCCL's own tuner table (LL). The result is that of the
    faster of ring and tree. It sums the base latency, the NVLink hops inside a node
    (1.8 times slower with several nodes), the network hops between nodes, and the bytes
    over the slowest link: 25 GB/s between nodes and 200 GB/s inside a node.
    """
    if devices == 1:
        return 0.0
    nodes = math.ceil(devices / 8)
    within = devices // nodes
    slow = 1.8 if nodes > 1 else 1.0
    hops = 2 * (devices - 1)
    ring = 3.6 + (hops - 2 * (nodes - 1)) * 0.47 * slow + 2 * (nodes - 1) * 2.7
    tree = 4.4 + 2 * ((within - 1) * 0.52 * slow + math.log2(nodes) * 5.0)
    bandwidth = 200e9 if nodes == 1 else 25e9
    return min(ring, tree) * 1e-6 + 2 * size / bandwidth


def tpu_seconds(devices: int, size: int) -> float:
    """Returns the seconds of one all-reduce over TPU v3 cores on a square torus.

    There are two cores per chip. A hop takes 1 us, and the data go half a side in each
    of two dimensions, there and back. The bandwidth is 100 GB/s.
    """
    if devices == 1:
        return 0.0
    side = math.sqrt(max(devices / 2, 1))
    return 2 * side * 1e-6 + 2 * size / 100e9


HARDWARE = {"TPU v3": tpu_seconds, "GPU, nodes of 8": nccl_seconds}


def sync_seconds(
    layers: list[models.NormLayer],
    group: int,
    all_reduce: Callable[[int, int], float],
    max_rows: int = collectives.MAX_ROWS,
) -> float:
    """Returns the seconds that statistics over groups of `group` devices add to a step.

    The forward collective has `3 C + 1` floats per device of the group, as rows. Groups
    of more than `max_rows` devices reduce `2 C + 1` floats in all. The backward
    collective has `2 C` floats.
    """
    total = 0.0
    for layer in layers:
        c = layer.channels
        rows = group * (3 * c + 1) if group <= max_rows else 2 * c + 1
        total += all_reduce(group, 4 * rows) + all_reduce(group, 4 * 2 * c)
    return total


# ResNet-50 without synchronised statistics: milliseconds per step and images per
# device, from the MLPerf v0.6 logs of 1,024 TPU v3 cores and 1,040 V100 in nodes of
# eight.
UNSYNCHRONISED = {"TPU v3": (45.8, 32), "GPU, nodes of 8": (49.8, 52)}


def flops(model: Any) -> float:
    """Returns the FLOPs of a model on one image of 224x224, as XLA counts them."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), image
    )

    def infer(variables, x):
        return model.apply(variables, x, train=False)

    return jax.jit(infer).lower(variables, image).cost_analysis()["flops"]
