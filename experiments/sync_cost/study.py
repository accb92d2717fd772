"""What synchronised statistics cost at scale: an alpha-beta model, checked twice.

Its step times are compared with those of published MLPerf runs, its count of
collectives with compiled programs on the devices and processes of this machine.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from experiments import output
from experiments.measuring import alpha_beta
from experiments.networks import models
from experiments.sync_cost import collective_counts, figure
from jaxbn.core import sync

DEVICES = tuple(2**k for k in range(3, 14))  # 8 to 8192
GROUPS = (1, 2, 4, *DEVICES)
NETWORKS = {"ResNet-50": models.ResNet50, "BN-Inception": models.BNInception}


@dataclasses.dataclass(frozen=True)
class SyncCost:
    """Predicted cost of synchronised statistics on up to 8192 devices (about 30 s)."""

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
            "unsynchronised": unsynchronised_steps(),
            "milliseconds": predictions(),
            "rows_over_sums": rows_over_sums(),
            "mlperf": alpha_beta.compare_with_mlperf(),
            "collectives": [
                collective_counts.layer_row(*case)
                for case in collective_counts.LAYER_CASES
            ],
            "network": [
                collective_counts.count_network(),
                collective_counts.count_in_two_processes(),
            ],
        }
        path = self.out / "sync_cost.json"
        output.write_json(path, result)
        output.write_text(path.with_suffix(".md"), table(result))
        figure.draw(path.with_suffix(".png"), result)
        print(table(result))


def unsynchronised_steps() -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds per step without synchronisation, images per device.

    Published for ResNet-50; for BN-Inception in proportion to its FLOPs.
    """
    work = {name: alpha_beta.flops(make()) for name, make in NETWORKS.items()}
    return {
        network: {
            hardware: {
                "ms": round(milliseconds * work[network] / work["ResNet-50"], 1),
                "images": images,
            }
            for hardware, (milliseconds, images) in alpha_beta.UNSYNCHRONISED.items()
        }
        for network in NETWORKS
    }


def predictions() -> dict[str, dict[str, list[float]]]:
    """Milliseconds that statistics over each of `GROUPS` add to a step.

    The number of devices in all does not matter: groups work side by side.
    """
    layers = {name: models.norm_layers(make()) for name, make in NETWORKS.items()}
    return {
        network: {
            hardware: [
                round(1e3 * alpha_beta.sync_seconds(layers[network], group, cost), 4)
                for group in GROUPS
            ]
            for hardware, cost in alpha_beta.HARDWARE.items()
        }
        for network in NETWORKS
    }


def rows_over_sums() -> dict[str, list[float]]:
    """Cost of rows over that of sums, ResNet-50, for 8 to 128 devices."""
    layers = models.norm_layers(models.ResNet50())

    def ratio(group: int, cost: Callable[[int, int], float]) -> float:
        rows = alpha_beta.sync_seconds(layers, group, cost, max_rows=group)
        return rows / alpha_beta.sync_seconds(layers, group, cost, max_rows=0)

    return {
        hardware: [round(ratio(group, cost), 3) for group in DEVICES[:5]]
        for hardware, cost in alpha_beta.HARDWARE.items()
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    parts = (_cost_table, _rows_line, _mlperf_table, _layer_table, _network_table)
    return "\n\n".join(part(result) for part in parts) + "\n"


def _cost_table(result: dict[str, Any]) -> str:
    shown = (2, 8, 16, 32, 64, 128, 512, 2048, 8192)
    rows = []
    for network, by_hardware in result["milliseconds"].items():
        for hardware, values in by_hardware.items():
            alone = result["unsynchronised"][network][hardware]
            cells = []
            for group in shown:
                added = values[GROUPS.index(group)]
                cells.append(f"{added:.2f} ({added / (added + alone['ms']):.0%})")
            rows.append([f"{network}, {hardware}", f"{alone['ms']:.1f}", *cells])
    return (
        "Milliseconds added to a step by statistics over groups of devices, and their "
        "share of that step:\n\n"
        + output.markdown(["network, hardware", "step without", *map(str, shown)], rows)
        + "\n\nGroups work side by side: groups of 8 cost the same on 8 devices and on "
        "8192; over all devices a group is their number. Images per device: "
        + ", ".join(
            f"{alone['images']} ({hardware})"
            for hardware, alone in result["unsynchronised"]["ResNet-50"].items()
        )
        + "."
    )


def _rows_line(result: dict[str, Any]) -> str:
    return (
        f"Rows against sums for {DEVICES[0]} to {DEVICES[4]} devices, ResNet-50: "
        + "; ".join(
            f"{hardware} {', '.join(f'{value:.2f}' for value in values)}"
            for hardware, values in result["rows_over_sums"].items()
        )
        + f". Rows are used up to {sync.MAX_ROWS}."
    )


def _mlperf_table(result: dict[str, Any]) -> str:
    fit = result["mlperf"]
    header = ["run", "cores", "images per core", "group", "published ms",
              "predicted ms", "of it synchronisation", "error"]  # fmt: skip
    rows = [
        [
            row["run"] + (" (fitted)" if row["fitted"] else ""),
            *(row[k] for k in ("cores", "images_per_core", "group", "published_ms")),
            row["predicted_ms"],
            f"{row['sync_ms']} ms, {row['sync_share']:.1%}",
            f"{row['error']:+.0%}",
        ]
        for row in fit["runs"]
    ]
    return (
        f"MLPerf, ResNet-50 on TPU v3: {fit['ms_per_image']} ms per image and "
        f"{fit['constant_ms']} ms per step, fitted to the runs marked so:\n\n"
        + output.markdown(header, rows)
    )


def _layer_table(result: dict[str, Any]) -> str:
    header = ["style", "layer", "forward", "bytes", "both", "bytes",
              "only if ill conditioned"]  # fmt: skip
    rows = [
        [
            row["style"], row["layer"], row["forward"], f"{row['forward_bytes']:,}",
            row["both"], f"{row['both_bytes']:,}", row["forward_conditional"],
        ]
        for row in result["collectives"]
    ]  # fmt: skip
    return (
        "Collectives of one layer of 64 channels on eight devices with the stable "
        "variance, from the compiled program (forward; forward and backward):\n\n"
        + output.markdown(header, rows)
    )


def _network_table(result: dict[str, Any]) -> str:
    header = ["processes", "devices", "collectives predicted", "compiled",
              "us each on this machine"]  # fmt: skip
    rows = [
        [
            row["processes"], row["devices"], row["predicted"], row["compiled"],
            row["microseconds_each"],
        ]
        for row in result["network"]
    ]  # fmt: skip
    layers = result["network"][0]["layers"]
    return f"{layers} layers, forward and backward:\n\n" + output.markdown(header, rows)
