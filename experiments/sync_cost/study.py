"""Predicts the cost of synchronised statistics at scale with an alpha-beta model.

Its step times are compared with those of published MLPerf runs. Its count of
collectives is compared with compiled programs on devices and processes of this machine.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import jax

from experiments import output
from experiments.measuring import alpha_beta, mlperf
from experiments.networks import inception, models
from experiments.sync_cost import collective_counts, report
from jaxbn.core import sync

DEVICES = tuple(2**k for k in range(3, 14))  # 8 to 8192
GROUPS = (1, 2, 4, *DEVICES)
NETWORKS = {"ResNet-50": models.ResNet50, "BN-Inception": inception.BNInception}


@dataclasses.dataclass(frozen=True)
class SyncCost:
    """Predicted cost of synchronised statistics on up to 8192 devices (about 30 s)."""

    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `sync_cost.json`, `.md` and `.png`."""
        if jax.config.jax_num_cpu_devices != 8:
            jax.config.update("jax_num_cpu_devices", 8)
        output.check_folder(self.out)
        result = {
            "groups": list(GROUPS),
            "max_rows": sync.MAX_ROWS,
            "unsynchronised": unsynchronised_steps(),
            "milliseconds": predictions(),
            "rows_over_sums": rows_over_sums(),
            "mlperf": mlperf.compare(),
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
        output.write_result(path, "sync_cost", self, result)
        print(report.write(path))


def unsynchronised_steps() -> dict[str, dict[str, dict[str, float]]]:
    """Returns milliseconds per step without synchronisation, and images per device.

    Those of ResNet-50 are published. Those of BN-Inception are in proportion to its
    FLOPs.
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
    """Returns the milliseconds that statistics over each of `GROUPS` add to a step.

    The number of all devices has no effect, because groups work side by side.
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
    """Returns the cost of rows relative to sums for 8 to 128 devices, ResNet-50."""
    layers = models.norm_layers(models.ResNet50())

    def ratio(group: int, cost: Callable[[int, int], float]) -> float:
        rows = alpha_beta.sync_seconds(layers, group, cost, max_rows=group)
        return rows / alpha_beta.sync_seconds(layers, group, cost, max_rows=0)

    return {
        hardware: [round(ratio(group, cost), 3) for group in DEVICES[:5]]
        for hardware, cost in alpha_beta.HARDWARE.items()
    }
