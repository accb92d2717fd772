"""Predicts and measures what synchronised statistics cost, exact ones and by policy.

`sync_cost` predicts the cost of exact statistics at scale with an alpha-beta model. The
step times of the model are compared with those of published MLPerf runs, and its count
of collectives with compiled programs on devices and processes of this machine.

`policy_cost` compares policies. With exact synchronisation every layer waits twice per
step for all devices. `Stale` sends the sums of all layers once, and no layer waits for
them. Times are measured on CPU devices and on two processes. Collectives are counted in
programs compiled for eight devices of a CPU, TPU and GPU and for a pod of 256 chips.
The model covers up to 8192 devices.

Expected: Stale has no more collectives than no synchronisation, and no layer waits for
one. Its step is within 5 % of local statistics on two processes. It takes under 1 % of
a ResNet-50 step on 2048 TPU cores, where exact synchronisation takes 13 %.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import jax
import tqdm

from experiments.compilers import targets
from experiments.framework import output, provenance, study
from experiments.library.sync_cost import (
    collective_counts,
    compiled,
    figure,
    figure_policies,
    measured,
    mlperf,
    modelled,
    network,
    report,
    report_policies,
)
from jaxbn._core import collectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncCost(study.Study):
    """Predicts the cost of synchronised statistics on 8192 devices (30 seconds)."""

    name = "sync_cost"
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    def measure(self) -> dict[str, Any]:
        """Predicts the cost, and counts collectives on this machine."""
        _have_eight_devices()
        return {
            "groups": list(modelled.GROUPS),
            "max_rows": collectives.MAX_ROWS,
            "unsynchronised": modelled.unsynchronised_steps(),
            "milliseconds": modelled.by_group(),
            "rows_over_sums": modelled.rows_over_sums(),
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyCost(study.Study):
    """Measures, counts and models what each policy costs (20 minutes)."""

    name = "policy_cost"
    small: ClassVar = {
        "widths": (8,),
        "size": 8,
        "images": 2,
        "rounds": 3,
        "policies": ("none", "Exact", "Local", "Stale"),
    }
    report = staticmethod(report_policies.table)
    draw = staticmethod(figure_policies.draw)

    part: Literal["all", "measured", "compiled", "modelled"] = "all"
    """The part to run again. The JSON keeps the results of the other parts."""
    policies: tuple[str, ...] = tuple(network.POLICIES)
    """The names of the policies to compare; "none" and "Local" are required."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """The number of channels of each block of the network that is timed."""
    size: int = 32
    """The height and width of the images of that network."""
    images: int = 4
    """The number of images per device, where eight devices share this machine. Each of
    two processes takes four times as many."""
    rounds: int = 10
    """The number of rounds; in each of them every policy takes eight steps."""

    def check(self) -> None:
        unknown = set(self.policies) - set(network.POLICIES)
        if unknown or not {"none", "Local"} <= set(self.policies):
            raise ValueError(
                f"`policies` must be among {sorted(network.POLICIES)}, with 'none' "
                f"and 'Local', got {self.policies}."
            )
        if self.rounds < 2:  # Quartiles need two values.
            raise ValueError(f"`rounds` must be at least 2, got {self.rounds}.")
        if not self.widths:
            raise ValueError("`widths` must have at least one number of channels.")

    def results(self, known: output.Result) -> Iterator[output.Result]:
        """Yields the result; parts that are not run come from an earlier result."""
        _have_eight_devices()
        result = {key: known.get(key) for key in ("measured", "modelled", "mlperf")}
        result["compiled"] = known.get("compiled", [])
        # The JSON has the parts of earlier runs as well.
        result["command"] = provenance.command(dataclasses.replace(self, part="all"))
        if self.part in ("all", "modelled") or not result["modelled"]:
            result["modelled"] = modelled.by_policy()
            result["mlperf"] = mlperf.compare()
        if self.part in ("all", "measured") or not result["measured"]:
            result["measured"] = _measured(self)
        if self.part in ("all", "compiled") and not self.quick:
            result["compiled"] = _compiled(self, result["compiled"])
        yield result


def _have_eight_devices() -> None:
    if jax.config.jax_num_cpu_devices != 8:
        jax.config.update("jax_num_cpu_devices", 8)


def _measured(config: PolicyCost) -> dict[str, Any]:
    setting = network.Setting(config.widths, config.size, config.images)
    larger = setting._replace(images=4 * config.images)
    # With two devices, a group of two has all of them.
    two = [name for name in config.policies if name != "Group(2)"]
    return {
        "layers": len(network.layers(setting)),
        "eight devices": measured.times(config.policies, setting, config.rounds),
        "two processes": measured.in_two_processes(two, larger, config.rounds),
    }


def _compiled(config: PolicyCost, old: list[compiled.Row]) -> list[compiled.Row]:
    """Returns new rows of the installed compilers and old rows of the others."""
    found = []
    for target in compiled.TARGETS:
        if line := targets.missing(target.platform):
            print(line)
            found += [row for row in old if row["target"] == target.target]
            continue
        rows = compiled.rows(target, config.policies)
        found += tqdm.tqdm(
            rows, total=len(config.policies), unit="program", desc=target.target
        )
    return found
