"""The alpha-beta model by policy: what a training step waits for, and what it sends.

Collectives are those of the compiled programs: two per layer that the next layer waits
for, or none but the gradient's, which then is larger by what the statistics send.
"""

from collections.abc import Callable
from typing import Any

from experiments.measuring import alpha_beta, mlperf
from experiments.networks import inception, models
from jaxbn.core import sync

DEVICES = tuple(2**k for k in range(3, 14))  # 8 to 8192
GROUP = 8  # Devices that share statistics in `Group(8)`.
PERIOD = 8  # Of `Periodic(8)`.
NETWORKS = {"ResNet-50": models.ResNet50, "BN-Inception": inception.BNInception}
STALE_FLOATS = 5  # Per channel: count, two sums forward, two backward.

Layers = list[models.NormLayer]
AllReduce = Callable[[int, int], float]  # Devices, bytes -> seconds.


def sent_floats(policy: str, layers: Layers, devices: int) -> float:
    """Floats of statistics that a device adds up with others, per step.

    Args:
      policy: a key of `seconds`; of `Periodic` the mean over its steps.
      layers: of the network.
      devices: how many there are.
    """
    rows = sum(devices * (3 * layer.channels + 1) for layer in layers)
    pairs = sum(2 * layer.channels for layer in layers)
    few = devices <= sync.MAX_ROWS
    if policy in ("Exact", "Sampled"):
        return (rows if few else pairs + len(layers)) + pairs
    if policy == "Periodic":
        return sent_floats("Exact", layers, devices) / PERIOD
    if policy == "Group":
        return rows + devices // GROUP * pairs
    if policy == "Group, apart":
        return sent_floats("Exact", layers, GROUP)
    if policy == "Local":  # For the running statistics.
        return rows if few else 2 * pairs + len(layers)
    if policy in ("Stale", "Stale, apart"):
        return STALE_FLOATS / 2 * pairs
    return 0  # none, FrozenAfter


def seconds(
    policy: str, layers: Layers, devices: int, all_reduce: AllReduce, gradient: int
) -> float:
    """What a step is longer by.

    Args:
      policy: "none", "Exact", "Sampled", "Periodic", "FrozenAfter" (later), "Local";
        "Group", as jaxbn makes it, of all devices' rows; "Group, apart", if groups had
        collectives of their own; "Stale", packed with the gradient; "Stale, apart", in
        one collective of its own, which the end of the step waits for.
      layers: of the network.
      devices: how many there are.
      all_reduce: the cost of one collective.
      gradient: bytes of the gradient, which is added up in any case.
    """
    if policy in ("Exact", "Sampled"):
        always_twice = all_reduce is alpha_beta.nccl_seconds  # On a GPU no conditional.
        total = alpha_beta.sync_seconds(layers, devices, all_reduce)
        if always_twice and devices > sync.MAX_ROWS:
            total += sum(all_reduce(devices, 4 * 2 * each.channels) for each in layers)
        return total
    if policy == "Periodic":
        return seconds("Exact", layers, devices, all_reduce, gradient) / PERIOD
    if policy == "Group, apart":
        return alpha_beta.sync_seconds(layers, GROUP, all_reduce)
    if policy == "Group":
        total = 0.0
        for layer in layers:
            rows = devices * (3 * layer.channels + 1)
            back = devices // GROUP * 2 * layer.channels
            total += all_reduce(devices, 4 * rows) + all_reduce(devices, 4 * back)
        return total
    if policy == "Stale, apart":
        return all_reduce(devices, round(4 * sent_floats(policy, layers, devices)))
    more = round(4 * sent_floats(policy, layers, devices))
    if policy == "Local" and devices > sync.MAX_ROWS:
        # Of its two collectives one can travel with the gradient.
        return all_reduce(devices, more) + (
            all_reduce(devices, gradient + more // 2) - all_reduce(devices, gradient)
        )
    return all_reduce(devices, gradient + more) - all_reduce(devices, gradient)


POLICIES = ("none", "Exact", "Group", "Group, apart", "Sampled", "Periodic",
            "FrozenAfter", "Local", "Stale", "Stale, apart")  # fmt: skip


def predictions() -> dict[str, Any]:
    """By network: the step without, milliseconds added and floats sent by policy."""
    work = {name: alpha_beta.flops(make()) for name, make in NETWORKS.items()}
    found = {}
    for name, make in NETWORKS.items():
        layers, gradient = models.norm_layers(make()), 4 * mlperf.parameters(make())
        by_hardware = {}
        for hardware, all_reduce in alpha_beta.HARDWARE.items():
            alone, _ = alpha_beta.UNSYNCHRONISED[hardware]
            by_hardware[hardware] = {
                "step_ms": round(alone * work[name] / work["ResNet-50"], 1),
                "added_ms": {
                    policy: [
                        round(
                            1e3
                            * seconds(policy, layers, devices, all_reduce, gradient),
                            5,
                        )
                        for devices in DEVICES
                    ]
                    for policy in POLICIES
                },
            }
        sent = {
            policy: [round(sent_floats(policy, layers, n)) for n in DEVICES]
            for policy in POLICIES
        }
        found[name] = {
            "layers": len(layers),
            "hardware": by_hardware,
            "sent_floats": sent,
        }
    return {"devices": list(DEVICES), "networks": found}
