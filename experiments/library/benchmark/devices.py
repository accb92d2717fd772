"""Times a layer on 1 to 8 devices that share the batch, by style of parallelism."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.framework import interleaved, styles
from experiments.library.benchmark import peers
from jaxbn import linen

SHAPE = (32, 28, 28, 128)
STYLES = {"jit": "jit Auto", "shard_map": "shard_map"}


def measure(rounds: int) -> dict[str, Any]:
    """Returns a row for each style and number of devices."""
    counts = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
    rows = [compare(style, n, rounds) for style in STYLES for n in counts]
    return {"devices": {"shape": SHAPE, "rows": rows}}


def compare(style: str, devices: int, rounds: int) -> dict[str, Any]:
    """Returns the time of Flax relative to jaxbn, forward and backward."""
    programs = {
        "jaxbn": program(linen.BatchNorm, style, devices),
        "flax.linen": program(nn.BatchNorm, style, devices),
    }
    taken = interleaved.seconds(programs, rounds)
    print(f"{style} on {devices} devices", flush=True)
    return {
        "style": style,
        "devices": devices,
        "jaxbn_ms": round(1e3 * float(np.median(taken["jaxbn"])), 4),
        "over_jaxbn": interleaved.ratio(taken["flax.linen"], taken["jaxbn"]),
    }


def program(cls: Callable[..., nn.Module], style: str, devices: int):
    """Returns a program without arguments that runs a step on the whole batch.

    The step gives y, new statistics and gradients.
    """

    def normalize(x, mask, scale, bias, stats, axis_name):
        del mask
        layer = cls(use_running_average=False, axis_name=axis_name)
        params = {"scale": scale, "bias": bias}
        variables = {"params": params, "batch_stats": stats}
        return layer.apply(variables, x, mutable=["batch_stats"])

    mesh = jax.make_mesh(
        (devices,), ("d",), (styles.AUTO,), devices=jax.devices()[:devices]
    )

    def put(array, *spec):
        return jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))

    channels = SHAPE[-1]
    x, dy = (put(a, "d") for a in peers.make_batch(SHAPE, "float32"))
    mask = put(jnp.ones((SHAPE[0], 1), bool), "d")
    scale, bias = put(jnp.ones(channels)), put(jnp.zeros(channels))
    stats = {"mean": bias, "var": scale}
    step = styles.ALL[STYLES[style]](normalize, devices)
    return lambda: jax.block_until_ready(step(x, mask, dy, scale, bias, stats))
