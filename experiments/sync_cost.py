"""What synchronised statistics cost at scale: an alpha-beta model, checked twice.

Every normalisation layer adds two collectives to a step, one forward and one backward,
each waiting for the layer before it: the cost is latency, not bandwidth. The model is
checked against the step times of published MLPerf runs, and its count of collectives
against compiled programs on eight devices of this machine.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import hlo, models, plotting
from jaxbn import linen
from jaxbn.core import sync

GROUPS = tuple(2**k for k in range(14))  # 1 to 8192 devices


@dataclasses.dataclass(frozen=True)
class SyncCost:
    """Predicted cost of synchronised statistics on up to 8192 devices (about 15 s)."""

    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `sync_cost.json`, `.md` and `.png`."""
        if jax.config.jax_num_cpu_devices != 8:
            jax.config.update("jax_num_cpu_devices", 8)
        self.out.mkdir(parents=True, exist_ok=True)
        result = {
            "study": "sync_cost",
            "groups": list(GROUPS),
            "milliseconds": predictions(),
            "rows_over_sums": rows_over_sums(),
            "mlperf": compare_with_mlperf(),
            "collectives": [layer_row(*case) for case in LAYER_CASES],
            "network": count_network(),
        }
        path = self.out / "sync_cost.json"
        plotting.write_json(path, result)
        plotting.write_text(path.with_suffix(".md"), table(result))
        plotting.sync_cost(path.with_suffix(".png"), result)
        print(table(result))


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
NETWORKS = {"ResNet-50": models.ResNet50, "BN-Inception": models.BNInception}


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


def predictions() -> dict[str, dict[str, list[float]]]:
    """Milliseconds per step for each network, hardware and group size."""
    layers = {name: models.norm_layers(make()) for name, make in NETWORKS.items()}
    return {
        network: {
            hardware: [
                round(1e3 * sync_seconds(layers[network], g, cost), 4) for g in GROUPS
            ]
            for hardware, cost in HARDWARE.items()
        }
        for network in NETWORKS
    }


def rows_over_sums() -> dict[str, list[float]]:
    """Cost of rows over that of sums, ResNet-50, for 2 to 128 devices."""
    layers = models.norm_layers(models.ResNet50())
    return {
        hardware: [
            round(
                sync_seconds(layers, group, cost, max_rows=group)
                / sync_seconds(layers, group, cost, max_rows=0),
                3,
            )
            for group in GROUPS[1:8]
        ]
        for hardware, cost in HARDWARE.items()
    }


# ResNet-50 on TPU v3 in the MLPerf logs: round, cores, images per core, cores that
# share statistics, milliseconds per step of the whole run, evaluation included.
MLPERF = (
    ("v0.6", 128, 128, 1, 134.0),
    ("v0.6", 256, 128, 1, 144.0),
    ("v0.6", 512, 64, 1, 84.0),
    ("v0.6", 1024, 32, 1, 45.8),
    ("v0.6", 2048, 16, 8, 27.3),
    ("v0.7 TF", 8192, 8, 8, 16.8),
    ("v0.7 JAX", 8192, 8, 8, 15.8),
)


def compare_with_mlperf() -> dict[str, Any]:
    """Step time = time per image * images + a constant + synchronisation.

    The first two are fitted to the runs without synchronised statistics; the runs with
    them are predicted.
    """
    fitted = [run for run in MLPERF if run[3] == 1]
    images = np.array([[run[2], 1.0] for run in fitted])
    published = np.array([run[4] for run in fitted])
    # In units of each run's own time: relative errors, not those of the slowest.
    solution, *_ = np.linalg.lstsq(
        images / published[:, None], np.ones(len(fitted)), rcond=None
    )
    layers = models.norm_layers(models.ResNet50())
    rows = []
    for name, cores, per_core, group, milliseconds in MLPERF:
        added = 1e3 * sync_seconds(layers, group, tpu_seconds)
        predicted = float(solution @ [per_core, 1.0]) + added
        rows.append(
            {
                "run": name,
                "cores": cores,
                "images_per_core": per_core,
                "group": group,
                "published_ms": milliseconds,
                "predicted_ms": round(predicted, 1),
                "sync_ms": round(added, 2),
                "sync_share": round(added / predicted, 4),
                "error": round(predicted / milliseconds - 1, 3),
                "fitted": group == 1,
            }
        )
    return {
        "ms_per_image": round(float(solution[0]), 4),
        "constant_ms": round(float(solution[1]), 2),
        "runs": rows,
    }


LAYER_CASES = tuple(
    (style, name) for style in ("jit", "shard_map") for name in ("flax", "jaxbn")
)


def layer_row(style: str, name: str, channels: int = 64) -> dict[str, Any]:
    """Collectives of one layer with stable variance on eight devices, from its HLO."""
    cls = {"flax": nn.BatchNorm, "jaxbn": linen.BatchNorm}[name]
    axis_name = "d" if style == "shard_map" else None
    layer = cls(use_running_average=False, use_fast_variance=False, axis_name=axis_name)
    x = jnp.ones((64, 4, channels))
    variables = layer.init(jax.random.key(0), x)

    def forward(x):
        return layer.apply(variables, x, mutable=["batch_stats"])

    def backward(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(forward(x)[0])))(x)

    row: dict[str, Any] = {"style": style, "layer": name}
    for part, function in (("forward", forward), ("both", backward)):
        found = _compiled(function, x, style)
        row[part] = sum(not c.conditional for c in found)
        row[f"{part}_bytes"] = sum(c.bytes for c in found if not c.conditional)
        row[f"{part}_conditional"] = sum(c.conditional for c in found)
    return row


class _Chain(nn.Module):
    """Ten layers, to see that the count grows by two for each."""

    depth: int = 10

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            layer = linen.BatchNorm(use_running_average=False, axis_name="d")
            x = nn.relu(layer(nn.Dense(16)(x)))
        return x


def count_network() -> dict[str, int]:
    """Collectives of forward and backward through ten layers on eight devices."""
    net = _Chain()
    x = jnp.ones((64, 16))
    variables = net.init(jax.random.key(0), x)

    def gradient(x):
        def loss(x):
            return jnp.sum(net.apply(variables, x, mutable=["batch_stats"])[0] ** 2)

        return jax.grad(loss)(x)

    found = _compiled(gradient, x, "shard_map")
    return {"layers": net.depth, "predicted": 2 * net.depth, "compiled": len(found)}


def _compiled(function, x, style: str) -> list[hlo.Collective]:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("d")
    if style == "shard_map":

        def on_shard(x, function=function):
            return jax.tree.map(lambda leaf: leaf[None], function(x))

        function = jax.shard_map(
            on_shard,
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
            check_vma=False,
        )
    x = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        text = jax.jit(function).lower(x).compile().as_text()
    return hlo.collectives(text)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["Milliseconds added to a step by statistics over groups of devices:", ""]
    shown = [g for g in (2, 8, 32, 64, 128, 512, 2048, 8192) if g in GROUPS]
    lines += [
        f"| network, hardware | {' | '.join(str(g) for g in shown)} |",
        "| --- |" + " --- |" * len(shown),
    ]
    for network, by_hardware in result["milliseconds"].items():
        for hardware, values in by_hardware.items():
            cells = " | ".join(f"{values[GROUPS.index(g)]:.2f}" for g in shown)
            lines.append(f"| {network}, {hardware} | {cells} |")
    lines += [
        "",
        f"Rows against sums for {GROUPS[1]} to {GROUPS[7]} devices, ResNet-50: "
        + "; ".join(
            f"{hardware} {', '.join(f'{value:.2f}' for value in values)}"
            for hardware, values in result["rows_over_sums"].items()
        )
        + f". Rows are used up to {sync.MAX_ROWS}.",
    ]
    fit = result["mlperf"]
    lines += [
        "",
        f"MLPerf, ResNet-50 on TPU v3: {fit['ms_per_image']} ms per image and "
        f"{fit['constant_ms']} ms per step, fitted to the runs marked so:",
        "",
        "| run | cores | images per core | group | published ms | predicted ms |"
        " of it synchronisation | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in fit["runs"]:
        lines.append(
            f"| {row['run']}{' (fitted)' if row['fitted'] else ''} | {row['cores']} | "
            f"{row['images_per_core']} | {row['group']} | {row['published_ms']} | "
            f"{row['predicted_ms']} | {row['sync_ms']} ms, {row['sync_share']:.1%} | "
            f"{row['error']:+.0%} |"
        )
    lines += [
        "",
        "Collectives of one layer of 64 channels on eight devices with the stable "
        "variance, from the compiled program (forward; forward and backward):",
        "",
        "| style | layer | forward | bytes | both | bytes | only if ill conditioned |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["collectives"]:
        lines.append(
            f"| {row['style']} | {row['layer']} | {row['forward']} | "
            f"{row['forward_bytes']:,} | {row['both']} | {row['both_bytes']:,} | "
            f"{row['forward_conditional']} |"
        )
    network = result["network"]
    lines += [
        "",
        f"{network['layers']} layers, forward and backward: {network['predicted']} "
        f"collectives predicted, {network['compiled']} compiled.",
    ]
    return "\n".join(lines) + "\n"
