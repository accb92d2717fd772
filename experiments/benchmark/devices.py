"""One layer on 1 to 8 devices that share the batch: time by style of parallelism."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import interleaved, peers
from jaxbn import linen

SHAPE = (32, 28, 28, 128)
STYLES = ("jit", "shard_map")


def measure(rounds: int) -> dict[str, Any]:
    """Rows of one style and number of devices each."""
    counts = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
    rows = [compare(style, n, rounds) for style in STYLES for n in counts]
    return {"devices": {"shape": SHAPE, "rows": rows}}


def compare(style: str, devices: int, rounds: int) -> dict[str, Any]:
    """Flax over jaxbn, forward and backward."""
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


def program(cls, style: str, devices: int) -> Callable[[], Any]:
    """Without arguments: y, new statistics and gradients, of the whole batch."""
    P, auto = jax.P, jax.sharding.AxisType.Auto
    mesh = jax.make_mesh(
        (devices,), ("d",), axis_types=(auto,), devices=jax.devices()[:devices]
    )
    split = jax.sharding.NamedSharding(mesh, P("d"))
    whole = jax.sharding.NamedSharding(mesh, P())
    layer = cls(
        use_running_average=False, axis_name="d" if style == "shard_map" else None
    )
    channels = SHAPE[-1]
    stats = {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}

    def both(x, dy, scale, bias):
        def apply(x, scale, bias):
            params = {"scale": scale, "bias": bias}
            variables = {"params": params, "batch_stats": stats}
            return layer.apply(variables, x, mutable=["batch_stats"])

        y, vjp, state = jax.vjp(apply, x, scale, bias, has_aux=True)
        return y, state, vjp(dy)

    if style == "shard_map":
        both = jax.shard_map(
            both,
            mesh=mesh,
            in_specs=(P("d"), P("d"), P(), P()),
            out_specs=(P("d"), P(), (P("d"), P(), P())),
        )
    x, dy = (jax.device_put(a, split) for a in peers.make_batch(SHAPE, "float32"))
    scale, bias = (
        jax.device_put(a, whole) for a in (jnp.ones(channels), stats["mean"])
    )
    compiled = jax.jit(both)
    return lambda: jax.block_until_ready(compiled(x, dy, scale, bias))
