"""Trains by policies on two processes with two devices each.

python -m tests.two_processes_policies PROCESS PORT OUT
"""

import pathlib
import sys

import jax
import numpy as np

from jaxbn import parallel, sync, training
from tests import train_by_policy, two_processes, workers

DEVICES = 4
POLICIES = {
    "exact": (None, workers.Groups(DEVICES)),
    "every other": (
        train_by_policy.EveryOther(),
        workers.Periodic(2, DEVICES, "local"),
    ),
    "stale": (sync.Stale(0.8), workers.Stale(0.8, True)),
}
BATCHES = [tuple(a[:DEVICES] for a in arrays) for arrays in train_by_policy.UNEVEN]


def main():
    process, port, out = sys.argv[1:4]
    mesh = two_processes.connect(process, port)
    for name, (policy, _) in POLICIES.items():
        state = train_by_policy.make_state(train_by_policy.Net("d", policy))
        step = training.make_train_step(train_by_policy.loss_fn, axis_name="d")
        state = sync.for_workers(state, DEVICES)
        step, state = train_by_policy.by_shard_map(step, state, mesh)
        losses = []
        for arrays in BATCHES:
            batch = jax.tree.map(
                two_processes.local_part, train_by_policy.as_batch(arrays)
            )
            state, metrics = step(state, parallel.shard_batch(batch, mesh))
            losses.append(np.asarray(metrics["loss"].mean))
        path = pathlib.Path(out) / f"{name} {process}.npz"
        np.savez(path, **train_by_policy.results(state, losses))


if __name__ == "__main__":
    main()
