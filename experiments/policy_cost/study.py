"""What does each policy of synchronisation cost?

Exact synchronisation makes every layer wait twice per step for all devices; `Stale`
sends the sums of all layers once, and nothing waits for them. Measured here on the
processor's devices and on two processes, counted in programs compiled for eight devices
of a processor, TPU and GPU and for a pod of 256 chips, and modelled for up to 8192.

Expected: of Stale no collective more than without synchronisation, none that a layer
waits for, a step within 5 % of local statistics on two processes, and under 1 % of a
ResNet-50 step at 2048 TPU cores, where exact synchronisation takes 13 %.

Measured: holds. In every program the sums of Stale travel with the gradient, and no
layer waits for them; by the model that is .02 % of a step. On two processes its step is
level with that of local statistics. On devices that share two cores it is a tenth
longer: it computes more for every channel.
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
    """What is done again; of the rest the JSON keeps what it has."""
    policies: tuple[str, ...] = tuple(network.POLICIES)
    """Names of policies, "none" and "Local" among them."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the blocks of the network that is timed."""
    size: int = 32
    """Of its images, in each direction."""
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
        whole = dataclasses.replace(self, part="all")  # All that the JSON holds.
        output.write_result(path, "policy_cost", whole, result)
        print(report.write(path))


def check(config: PolicyCost) -> None:
    """Before any work.

    Raises:
      ValueError: naming the option that is wrong.
    """
    unknown = set(config.policies) - set(network.POLICIES)
    if unknown or not {"none", "Local"} <= set(config.policies):
        raise ValueError(
            f"`policies` must be of {sorted(network.POLICIES)}, with 'none' and "
            f"'Local', got {config.policies}."
        )
    if config.rounds < 2:  # Quartiles.
        raise ValueError(f"`rounds` must be at least 2, got {config.rounds}.")
    if not config.widths:
        raise ValueError("`widths` must hold one number of channels at least.")


def measure(config: PolicyCost, known: dict[str, Any]) -> dict[str, Any]:
    """The result; what this run does not do is taken from an earlier one."""
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
    # Of two devices, groups of two are all.
    two = [name for name in config.policies if name != "Group(2)"]
    return {
        "layers": len(network.layers(setting)),
        "eight devices": measured.times(config.policies, setting, config.rounds),
        "two processes": measured.in_two_processes(two, larger, config.rounds),
    }


def _compiled(config: PolicyCost, old: list[compiled.Row]) -> list[compiled.Row]:
    """Rows of the compilers that are installed, and old ones of the others."""
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
