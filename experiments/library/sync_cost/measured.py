"""Measures milliseconds per training step by policy, on CPU devices of this machine.

`python -m experiments.library.sync_cost.measured PROCESS PORT SETTING POLICIES
ROUNDS` is one of two processes with one device each, joined by gloo. Process 0 prints
the result of `times`.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax

from experiments.compilers import hlo_paths
from experiments.framework import interleaved, processes
from experiments.library.sync_cost import network

STEPS = 8  # The steps of one measurement, a period of `Periodic(8)`.


def times(
    names: Sequence[str], setting: network.Setting, rounds: int
) -> dict[str, dict[str, Any]]:
    """Measures milliseconds per step, and their ratios to "none" and to "Local".

    The ratios are those of the same round.

    Args:
      names: the names of policies, "none" and "Local" among them.
      setting: the network and the batch, on all devices of all processes.
      rounds: the number of rounds; in each, every policy takes `STEPS` steps, and the
        order changes.

    Returns:
      The row of each policy, which also has the collectives of its program.
    """
    mesh = network.mesh_of(jax.devices())
    programs, rows = {}, {}
    for name in names:
        step = network.make(name, setting, mesh)
        compiled = step.function.lower(step.state, step.batch).compile()
        found = hlo_paths.waiting(compiled.as_text())
        rows[name] = {"collectives": found._asdict()}
        programs[name] = _Program(compiled, step)
    # With `at_least=0` all processes run a program once per round. Otherwise the number
    # of runs could differ, and one process would wait for the other forever.
    taken = interleaved.seconds(programs, rounds, at_least=0)
    for name, seconds in taken.items():
        rows[name] |= {
            "ms": round(1e3 * statistics.median(seconds) / STEPS, 2),
            "over_none": interleaved.ratio(seconds, taken["none"])._asdict(),
            "over_local": interleaved.ratio(seconds, taken["Local"])._asdict(),
        }
    return rows


class _Program:
    """A training; each call runs its next `STEPS` steps."""

    def __init__(self, function: Any, step: network.Step):
        self.function, self.state, self.batch = function, step.state, step.batch

    def __call__(self) -> None:
        for _ in range(STEPS):
            self.state, _ = self.function(self.state, self.batch)
        jax.block_until_ready(self.state)


def in_two_processes(
    names: Sequence[str], setting: network.Setting, rounds: int
) -> dict[str, dict[str, Any]]:
    """Returns the result of `times` on two processes of one device each."""
    outputs = processes.finish(
        "experiments.library.sync_cost.measured",
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
