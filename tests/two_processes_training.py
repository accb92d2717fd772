"""Trains on two processes and goes on from the last checkpoint if there is one.

python -m tests.two_processes_training PROCESS PORT OUT [die]

With `die` the second process kills itself in the middle.
"""

import os
import pathlib
import signal
import sys

import flax.linen as nn
import jax
import numpy as np
import optax

from experiments.framework.checkpoints import Checkpoints
from jaxbn import linen, parallel, training
from tests import two_processes

STEPS, DIES_AT = 6, 4


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(momentum=0.5)(nn.Dense(4)(x), use_running_average=not train)
        return nn.Dense(1)(nn.relu(x))


def loss_fn(model, batch, train):
    return {"loss": (model(batch["x"], train=train)[:, 0] - batch["y"]) ** 2}


def make_batch(step):
    """Inputs of all processes."""
    return np.random.default_rng(step).normal(3, 2, (16, 3)).astype(np.float32)


def main():
    process, port, out = sys.argv[1:4]
    out = pathlib.Path(out)
    mesh = two_processes.connect(process, port)
    variables = Net().init(jax.random.key(0), np.ones((1, 3), np.float32), train=False)
    tx = optax.sgd(0.05, 0.9)
    state = training.TrainState.create(Net().apply, variables, tx)
    checkpoints = Checkpoints(out / "checkpoints")
    restored = checkpoints.restore(state)
    start = 0 if restored is None else int(restored.step)
    print(f"starts at step {start}")
    state = parallel.replicate(state if restored is None else restored, mesh)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.device_set == set(mesh.devices.flat)
    train_step = training.make_train_step(loss_fn)
    for step in range(start, STEPS):
        if "die" in sys.argv and step == DIES_AT and process == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        part = two_processes.local_part(make_batch(step))
        batch = parallel.shard_batch({"x": part, "y": part.sum(-1)}, mesh)
        state, _ = train_step(state, batch)
        checkpoints.save(step + 1, state)
    leaves = jax.tree.leaves((state.params, state.batch_stats))
    np.savez(out / f"end {process}.npz", *map(np.asarray, leaves))


if __name__ == "__main__":
    main()
