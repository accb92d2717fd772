"""Milliseconds per training step by policy, on devices of this machine's processor.

`python -m experiments.policy_cost.measured PROCESS PORT SETTING ROUNDS` is one of two
processes of one device each, joined by gloo; process 0 prints what `times` returns.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax

from experiments.measuring import hlo_paths, interleaved, processes
from experiments.policy_cost import network

STEPS = 8  # In a row: a period of `Periodic(8)`.


def times(
    names: Sequence[str], setting: network.Setting, rounds: int
) -> dict[str, dict[str, Any]]:
    """Milliseconds per step, ratios over "none" and over "Local" round by round.

    Args:
      names: of policies, "none" and "Local" among them.
      setting: what is trained on what, on all devices of all processes.
      rounds: in each of which every policy takes `STEPS` steps, in changing order.

    Returns:
      By policy; also the collectives of its program.
    """
    mesh = network.mesh_of(jax.devices())
    programs, rows = {}, {}
    for name in names:
        step = network.make(name, setting, mesh)
        compiled = step.function.lower(step.state, step.batch).compile()
        found = hlo_paths.waiting(compiled.as_text())
        rows[name] = {"collectives": found._asdict()}
        programs[name] = _Program(compiled, step)
    # Once per round in all processes alike, or they would wait for each other.
    taken = interleaved.seconds(programs, rounds, at_least=0)
    for name, seconds in taken.items():
        rows[name] |= {
            "ms": round(1e3 * statistics.median(seconds) / STEPS, 2),
            "over_none": interleaved.ratio(seconds, taken["none"])._asdict(),
            "over_local": interleaved.ratio(seconds, taken["Local"])._asdict(),
        }
    return rows


class _Program:
    """Some steps of a training that goes on from call to call."""

    def __init__(self, function: Any, step: network.Step):
        self.function, self.state, self.batch = function, step.state, step.batch

    def __call__(self) -> None:
        for _ in range(STEPS):
            self.state, _ = self.function(self.state, self.batch)
        jax.block_until_ready(self.state)


def in_two_processes(
    names: Sequence[str], setting: network.Setting, rounds: int
) -> dict[str, dict[str, Any]]:
    """`times` on two processes of one device each."""
    outputs = processes.finish(
        "experiments.policy_cost.measured",
        json.dumps(setting._asdict()),
        json.dumps(list(names)),
        str(rounds),
        seconds=1800,
    )
    return json.loads(outputs[0].splitlines()[-1])


def _main() -> None:
    process, port = map(int, sys.argv[1:3])
    setting, names, rounds = map(json.loads, sys.argv[3:])
    processes.join(process, port, devices=1)
    made = network.Setting(**setting | {"widths": tuple(setting["widths"])})
    rows = times(names, made, rounds)
    if process == 0:
        print(json.dumps(rows))


if __name__ == "__main__":
    _main()
