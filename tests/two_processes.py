"""One of two processes with two devices each; run by `test_two_processes.py`.

python two_processes.py PROCESS PORT OUT [die]
"""

import os
import pathlib
import sys

import jax
import numpy as np

import jaxbn
from jaxbn import parallel

P = jax.P
SCALE, BIAS = np.float32([1, 2, 0.5]), np.float32([0, 1, -1])


def make_batch():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 3)) + np.arange(16)[:, None]
    mask = np.ones((16, 1), bool)
    mask[1:4] = False  # One valid row on the first device,
    mask[12:] = False  # and none on the last.
    dy = np.where(mask, rng.standard_normal((16, 3)), 0)
    return {
        "x": np.where(mask, x, np.nan).astype(np.float32),
        "mask": mask,
        "dy": dy.astype(np.float32),
    }


def step(batch, axis_name=None):
    def normalize(x, scale, bias):
        return jaxbn.batch_norm_train(
            x, scale, bias, jaxbn.init_batch_stats(3), mask=batch["mask"],
            axis_name=axis_name,
        )  # fmt: skip

    y, vjp, stats = jax.vjp(normalize, batch["x"], SCALE, BIAS, has_aux=True)
    dx, dscale, dbias = vjp(batch["dy"])
    return {"y": y, "dx": dx}, {"dscale": dscale, "dbias": dbias, **stats._asdict()}


def on_device(batch):
    """Under shard_map each device has its own part of dscale and dbias."""
    sharded, whole = step(batch, "d")
    added = {name: jax.lax.psum(whole[name], "d") for name in ("dscale", "dbias")}
    return sharded, whole | added


def main():
    process, port, out = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"localhost:{port}", 2, process, heartbeat_timeout_seconds=10
    )
    mesh = parallel.data_mesh(axis_name="d")
    assert mesh.size == 4
    mine = jax.tree.map(lambda a: a[8 * process : 8 * process + 8], make_batch())
    batch = parallel.shard_batch(mine, mesh)
    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=P("d"),
        out_specs=(P("d"), P()),
        check_vma=False,
    )
    for name, function in {"jit": step, "shard_map": mapped}.items():
        sharded, whole = jax.jit(function)(batch)
        results = {key: np.asarray(value) for key, value in whole.items()}
        for key, array in sharded.items():
            shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start)
            results[key] = np.concatenate([np.asarray(s.data) for s in shards])
        np.savez(out / f"{name}_{process}.npz", **results)
        if "die" in sys.argv and process == 1:
            os._exit(9)


if __name__ == "__main__":
    main()
