"""Trains by every policy on two processes with two devices each.

python -m tests.two_processes_policies PROCESS PORT OUT
"""

import pathlib
import sys

import jax
import numpy as np
import optax

from jaxbn import parallel, sync_policies, training
from tests import test_sync_policies as cases
from tests import two_processes, workers

P = jax.P
DEVICES = 4
REFERENCES = {
    "exact": lambda: workers.Groups(DEVICES),
    "local": lambda: workers.Groups(1),
    "periodic": lambda: workers.Periodic(3, DEVICES, "local"),
    "stale": lambda: workers.Stale(0.8, True),
}
BATCHES = [tuple(a[:DEVICES] for a in arrays) for arrays in cases.BATCHES[True]]


def main():
    process, port, out = sys.argv[1:4]
    mesh = two_processes.connect(process, port)
    batches = [cases.as_batch(arrays, apart=False) for arrays in BATCHES]
    for name in REFERENCES:
        net = cases.Net("d", cases.POLICIES[name][0])
        first = batches[0]
        variables = net.init(jax.random.key(0), first["x"], False, first["mask"])
        tx = optax.sgd(workers.RATE)
        state = training.TrainState.create(net.apply, variables, tx)
        state = sync_policies.for_workers(state, DEVICES)
        specs = sync_policies.partition_specs(state, "d")
        state = parallel.replicate(state, mesh)
        step = jax.jit(
            jax.shard_map(
                training.make_train_step(cases.loss_fn, axis_name="d"),
                mesh=mesh,
                in_specs=(specs, P("d")),
                out_specs=(specs, P()),
            )
        )
        losses = []
        for batch in batches:
            local = jax.tree.map(two_processes.local_part, batch)
            state, metrics = step(state, parallel.shard_batch(local, mesh))
            losses.append(np.asarray(metrics["loss"].mean))
        made = {**state.batch_stats["BatchNorm_0"], **state.params["BatchNorm_0"]}
        made |= {"kernel": state.params["kernel"], "losses": np.array(losses)}
        np.savez(
            pathlib.Path(out) / f"{name} {process}.npz",
            **{key: np.asarray(value) for key, value in made.items()},
        )


if __name__ == "__main__":
    main()
