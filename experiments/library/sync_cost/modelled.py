"""The alpha-beta model of a training step: its waiting and its traffic.

First come the predictions for exact statistics by group, then those by policy.

The collectives are those of the compiled programs. Either each layer has two, and the
next layer waits for them, or the statistics travel with the gradient, in a larger
collective.
"""

from collections.abc import Callable
from typing import Any

from experiments.compilers import alpha_beta
from experiments.library.sync_cost import mlperf
from experiments.networks import inception, models
from jaxbn._core import collectives

DEVICES = tuple(2**k for k in range(3, 14))  # 8 to 8192
GROUP = 8  # The number of devices that share statistics in `Group(8)`.
PERIOD = 8  # The period of `Periodic(8)`.
GROUPS = (1, 2, 4, *DEVICES)
NETWORKS = {"ResNet-50": models.ResNet50, "BN-Inception": inception.BNInception}
STALE_FLOATS = 5  # Per channel: count, two sums forward, two backward.

Layers = list[models.NormLayer]
AllReduce = Callable[[int, int], float]  # devices, bytes -> seconds


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


def by_group() -> dict[str, dict[str, list[float]]]:
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


def sent_floats(policy: str, layers: Layers, devices: int) -> float:
    """Returns the floats of statistics that a device reduces with others, per step.

    Args:
      policy: a name that `seconds` knows; `Periodic` gives the mean over its steps.
      layers: the normalisation layers of the network.
      devices: the number of devices.
    """
    rows = sum(devices * (3 * layer.channels + 1) for layer in layers)
    pairs = sum(2 * layer.channels for layer in layers)
    few = devices <= collectives.MAX_ROWS
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
        "Group, apart" has collectives for each group. "Stale" is sent with the
        gradient; "Stale, apart" has one more collective at the end of the step.
      layers: the normalisation layers of the network.
      devices: the number of devices.
      all_reduce: a function that returns the seconds of one collective.
      gradient: the bytes of the gradient, which is reduced in any case.
    """
    if policy in ("Exact", "Sampled"):
        # A program for a GPU has no conditional, so its second collective always runs.
        always_twice = all_reduce is alpha_beta.nccl_seconds
        total = alpha_beta.sync_seconds(layers, devices, all_reduce)
        if always_twice and devices > collectives.MAX_ROWS:
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
    if policy == "Local" and devices > collectives.MAX_ROWS:
        # One of its two collectives can travel with the gradient.
        return all_reduce(devices, more) + (
            all_reduce(devices, gradient + more // 2) - all_reduce(devices, gradient)
        )
    return all_reduce(devices, gradient + more) - all_reduce(devices, gradient)


POLICIES = ("none", "Exact", "Group", "Group, apart", "Sampled", "Periodic",
            "FrozenAfter", "Local", "Stale", "Stale, apart")  # fmt: skip


def by_policy() -> dict[str, Any]:
    """Returns the predictions by policy for each network.

    They are the step without synchronisation, and by policy the milliseconds that it
    adds and the floats that it sends.
    """
    steps = unsynchronised_steps()
    found = {}
    for name, make in NETWORKS.items():
        layers, gradient = models.norm_layers(make()), 4 * mlperf.parameters(make())
        by_hardware = {}
        for hardware, all_reduce in alpha_beta.HARDWARE.items():
            by_hardware[hardware] = {
                "step_ms": steps[name][hardware]["ms"],
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
