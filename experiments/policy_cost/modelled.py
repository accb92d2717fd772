"""The alpha-beta model of a training step by policy: its waiting and its traffic.

The collectives are those of the compiled programs. Either each layer has two, and the
next layer waits for them, or the statistics travel with the gradient, in a larger
collective.
"""

from collections.abc import Callable
from typing import Any

from experiments.measuring import alpha_beta, mlperf
from experiments.networks import inception, models
from jaxbn.core import sync

DEVICES = tuple(2**k for k in range(3, 14))  # 8 to 8192
GROUP = 8  # The number of devices that share statistics in `Group(8)`.
PERIOD = 8  # The period of `Periodic(8)`.
NETWORKS = {"ResNet-50": models.ResNet50, "BN-Inception": inception.BNInception}
STALE_FLOATS = 5  # Per channel: count, two sums forward, two backward.

Layers = list[models.NormLayer]
AllReduce = Callable[[int, int], float]  # devices, bytes -> seconds


def sent_floats(policy: str, layers: Layers, devices: int) -> float:
    """Returns the floats of statistics that a device reduces with others, per step.

    Args:
      policy: a name that `seconds` knows; `Periodic` gives the mean over its steps.
      layers: the normalisation layers of the network.
      devices: the number of devices.
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
    if policy == "Local":  # The running statistics are synchronised.
        return rows if few else 2 * pairs + len(layers)
    if policy in ("Stale", "Stale, apart"):
        return STALE_FLOATS / 2 * pairs
    return 0  # none, FrozenAfter


def seconds(
    policy: str, layers: Layers, devices: int, all_reduce: AllReduce, gradient: int
) -> float:
    """Returns the seconds that a policy adds to a step.

    Args:
      policy: "none", "Exact", "Sampled", "Periodic", "FrozenAfter" (once frozen) or
        "Local". "Group" is the one of jaxbn, which sends the rows of all devices;
        "Group, apart" has collectives for each group. "Stale" is packed with the
        gradient; "Stale, apart" has one collective of its own at the end of the step.
      layers: the normalisation layers of the network.
      devices: the number of devices.
      all_reduce: a function that returns the seconds of one collective.
      gradient: the bytes of the gradient, which is reduced in any case.
    """
    if policy in ("Exact", "Sampled"):
        # A program for a GPU has no conditional, so its second collective always runs.
        always_twice = all_reduce is alpha_beta.nccl_seconds
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
        # One of its two collectives can travel with the gradient.
        return all_reduce(devices, more) + (
            all_reduce(devices, gradient + more // 2) - all_reduce(devices, gradient)
        )
    return all_reduce(devices, gradient + more) - all_reduce(devices, gradient)


POLICIES = ("none", "Exact", "Group", "Group, apart", "Sampled", "Periodic",
            "FrozenAfter", "Local", "Stale", "Stale, apart")  # fmt: skip


def predictions() -> dict[str, Any]:
    """Returns the predictions for each network.

    They are the step without synchronisation, and by policy the milliseconds that it
    adds and the floats that it sends.
    """
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
