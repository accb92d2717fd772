"""Counts collectives of compiled layers, on forced CPU devices and in two processes.

`python -m experiments.library.sync_cost.collective_counts PROCESS PORT` is one of two
processes of two devices each, joined by gloo. Process 0 prints the result of
`count_network`.
"""

import functools
import json
import statistics
import sys
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.compilers import hlo
from experiments.framework import processes
from jaxbn import linen, parallel

LAYER_CASES = tuple(
    (style, name) for style in ("jit", "shard_map") for name in ("flax", "jaxbn")
)


def layer_row(style: str, name: str, channels: int = 64) -> dict[str, Any]:
    """Counts collectives in the HLO of a layer with stable variance on all devices."""
    cls = {"flax": nn.BatchNorm, "jaxbn": linen.BatchNorm}[name]
    axis_name = "d" if style == "shard_map" else None
    layer = cls(use_running_average=False, use_fast_variance=False, axis_name=axis_name)
    shape = (64, 4, channels)
    variables = layer.init(jax.random.key(0), np.ones(shape, np.float32))

    def forward(x):
        return layer.apply(variables, x, mutable=["batch_stats"])

    def backward(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(forward(x)[0])))(x)

    row: dict[str, Any] = {"style": style, "layer": name}
    for part, function in (("forward", forward), ("both", backward)):
        found = hlo.collectives(_compile(function, shape, style).as_text())
        row[part] = sum(not c.conditional for c in found)
        row[f"{part}_bytes"] = sum(c.bytes for c in found if not c.conditional)
        row[f"{part}_conditional"] = sum(c.conditional for c in found)
    return row


class _Chain(nn.Module):
    """A network of ten layers; each adds two collectives to a step."""

    axis_name: str | None
    depth: int = 10

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            layer = linen.BatchNorm(use_running_average=False, axis_name=self.axis_name)
            x = nn.relu(layer(nn.Dense(16)(x)))
        return x


def count_network(rounds: int = 30) -> dict[str, Any]:
    """Counts and times collectives of ten layers, forward and backward.

    The time that each adds is a median over `rounds`, in which the network without
    synchronisation takes turns. It is that of this machine, whose devices are threads.
    """
    shape = (64, 16)
    programs = {
        axis_name: _compile(
            functools.partial(_gradient, _Chain(axis_name)), shape, "shard_map"
        )
        for axis_name in ("d", None)
    }
    predicted = 2 * _Chain.depth
    compiled = len(hlo.collectives(programs["d"].as_text()))
    mesh = parallel.data_mesh(axis_name="d")
    part = np.random.default_rng(0).normal(size=(64 // jax.process_count(), 16))
    batch = parallel.shard_batch({"x": part.astype(np.float32)}, mesh)
    added = []
    for _ in range(rounds):
        seconds = {}
        for axis_name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(batch["x"]))
            seconds[axis_name] = time.perf_counter() - start
        added.append((seconds["d"] - seconds[None]) / compiled)
    return {
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "layers": _Chain.depth,
        "predicted": predicted,
        "compiled": compiled,
        "microseconds_each": round(1e6 * statistics.median(added)),
    }


def count_in_two_processes() -> dict[str, Any]:
    """Returns the result of `count_network` on two processes of two devices each."""
    outputs = processes.finish("experiments.library.sync_cost.collective_counts")
    return json.loads(outputs[0].splitlines()[-1])


def _gradient(net, x):
    variables = net.init(jax.random.key(0), x)

    def loss(x):
        return jnp.sum(net.apply(variables, x, mutable=["batch_stats"])[0] ** 2)

    return jax.grad(loss)(x)


def _compile(function, shape: tuple[int, ...], style: str):
    mesh = parallel.data_mesh(axis_name="d")
    spec = jax.P("d")
    if style == "shard_map":

        def on_shard(x, function=function):
            return jax.tree.map(lambda leaf: leaf[None], function(x))

        function = jax.shard_map(
            on_shard, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
    sharding = jax.sharding.NamedSharding(mesh, spec)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(x).compile()


def _main() -> None:
    process, port = map(int, sys.argv[1:])
    processes.join(process, port)
    counts = count_network()
    if process == 0:
        print(json.dumps(counts))


if __name__ == "__main__":
    _main()
