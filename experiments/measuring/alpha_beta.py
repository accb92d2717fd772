"""An alpha-beta model of synchronised statistics.

Every normalisation layer adds two collectives to a step, one forward and one backward,
each waiting for the layer before it: the cost is latency, not bandwidth.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.networks import models
from jaxbn.core import sync


def nccl_seconds(devices: int, size: int) -> float:
    """One all-reduce over GPUs in nodes of eight, NCCL's own tuner table (LL).

    The faster of ring and tree: base latency, NVLink hops inside a node (1.8 times
    slower with several nodes), network hops between nodes, then bytes over the slowest
    link, 25 GB/s between and 200 GB/s inside nodes.
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
    """One all-reduce over TPU v3 cores, two per chip, on a square torus.

    1 us per hop; half a side in each of two dimensions, there and back; 100 GB/s.
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
    max_rows: int = sync.MAX_ROWS,
) -> float:
    """Added to a step by statistics over groups of `group` devices.

    Forward `3 C + 1` floats per device of the group as rows, or beyond `max_rows`
    `2 C + 1` in all; backward `2 C`.
    """
    total = 0.0
    for layer in layers:
        c = layer.channels
        rows = group * (3 * c + 1) if group <= max_rows else 2 * c + 1
        total += all_reduce(group, 4 * rows) + all_reduce(group, 4 * 2 * c)
    return total


# Milliseconds per step of ResNet-50 without synchronised statistics, and images per
# device, from the MLPerf v0.6 logs: 1,024 TPU v3 cores; 1,040 V100 in nodes of eight.
UNSYNCHRONISED = {"TPU v3": (45.8, 32), "GPU, nodes of 8": (49.8, 52)}


def flops(model: Any) -> float:
    """Of one image of 224x224 through a model, by XLA's own count."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), image
    )

    def infer(variables, x):
        return model.apply(variables, x, train=False)

    return jax.jit(infer).lower(variables, image).cost_analysis()["flops"]
