"""Measures the time that each policy of synchronisation costs.

With exact synchronisation every layer waits twice per step for all devices. `Stale`
sends the sums of all layers once, and no layer waits for them. Times are measured on
CPU devices and on two processes. Collectives are counted in programs compiled for eight
devices of a CPU, TPU and GPU and for a pod of 256 chips. A model covers up to 8192
devices.

Expected: Stale has no more collectives than no synchronisation, and no layer waits for
one. Its step is within 5 % of local statistics on two processes. It takes under 1 % of
a ResNet-50 step on 2048 TPU cores, where exact synchronisation takes 13 %.

Measured: holds. In every program the sums of Stale travel with the gradient, and no
layer waits for them. In the model that is .02 % of a step. On two processes its step
takes as long as that of local statistics. On devices that share two cores it is a tenth
longer, because it computes more for every channel.
"""

import dataclasses
import json
import pathlib
from typing import Any, Literal

import jax
import tqdm

from experiments import options, output
from experiments.measuring import mlperf
from experiments.policy_cost import compiled, measured, modelled, network, report
from experiments.programs import targets

QUICK: dict[str, Any] = {
    "widths": (8,),
    "size": 8,
    "images": 2,
    "rounds": 3,
    "policies": ("none", "Exact", "Local", "Stale"),
}


@dataclasses.dataclass(frozen=True)
class PolicyCost:
    """Cost of each policy of synchronisation: time, collectives, a model (20 min)."""

    part: Literal["all", "measured", "compiled", "modelled"] = "all"
    """The part to run again; the JSON keeps its results of the other parts."""
    policies: tuple[str, ...] = tuple(network.POLICIES)
    """Names of policies, "none" and "Local" among them."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the blocks of the network that is timed."""
    size: int = 32
    """The height and width of the images of that network."""
    images: int = 4
    """Per device, where eight devices share two cores or so; of two processes each
    takes four times as many."""
    rounds: int = 10
    """Each policy takes eight steps in each."""
    quick: bool = False
    """A network of three layers and four policies, nothing compiled, in a minute."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Writes `policy_cost.json`, `.md` and `.png`."""
        if jax.config.jax_num_cpu_devices != 8:
            jax.config.update("jax_num_cpu_devices", 8)
        config = options.quick(self, QUICK)
        check(config)
        output.check_folder(self.out)
        path = self.out / "policy_cost.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        with options.interruptible():
            result = measure(config, known)
        # The JSON has the parts of earlier runs as well.
        whole = dataclasses.replace(self, part="all")
        output.write_result(path, "policy_cost", whole, result)
        print(report.write(path))


def check(config: PolicyCost) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: if an option is wrong; the message names it.
    """
    unknown = set(config.policies) - set(network.POLICIES)
    if unknown or not {"none", "Local"} <= set(config.policies):
        raise ValueError(
            f"`policies` must be of {sorted(network.POLICIES)}, with 'none' and "
            f"'Local', got {config.policies}."
        )
    if config.rounds < 2:  # Quartiles need two values.
        raise ValueError(f"`rounds` must be at least 2, got {config.rounds}.")
    if not config.widths:
        raise ValueError("`widths` must hold one number of channels at least.")


def measure(config: PolicyCost, known: dict[str, Any]) -> dict[str, Any]:
    """Returns the result; parts that are not run come from an earlier result."""
    result = {key: known.get(key) for key in ("measured", "modelled", "mlperf")}
    result["compiled"] = known.get("compiled", [])
    if config.part in ("all", "modelled") or not result["modelled"]:
        result["modelled"] = modelled.predictions()
        result["mlperf"] = mlperf.compare()
    if config.part in ("all", "measured") or not result["measured"]:
        result["measured"] = _measured(config)
    if config.part in ("all", "compiled") and not config.quick:
        result["compiled"] = _compiled(config, result["compiled"])
    return result


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
