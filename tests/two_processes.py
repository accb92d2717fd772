"""One of two processes with two devices each; run by `test_two_processes.py`.

python -m tests.two_processes PROCESS PORT OUT
"""

import pathlib
import sys

import jax
import numpy as np

import jaxbn
from experiments.framework import processes
from jaxbn import parallel

P = jax.P
SCALE, BIAS = np.float32([1, 2, 0.5]), np.float32([0, 1, -1])
# Rows of sixteen that do not count, four to a device.
MASKED = {
    "none": [],
    "equal": [0, 4, 8, 12],
    "uneven": [1, 2, 3, 4, 13],
    "empty device": [12, 13, 14, 15],
    "uneven, empty, NaN": [1, 2, 3, 12, 13, 14, 15],
}


def make_batch(case):
    """`x`, `mask` and `dy`; a batch of mean 3 whose devices differ."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 16, 3)).astype(np.float32)
    x += np.arange(16, dtype=np.float32)[:, None]
    mask = np.ones((16, 1), bool)
    mask[MASKED[case]] = False
    if "NaN" in case:
        x = np.where(mask, x, np.nan)
    return {"x": x, "mask": mask, "dy": np.where(mask, dy, 0)}


def connect(process, port):
    """Joins the two processes; a mesh of all four devices."""
    processes.join(int(process), int(port))
    return parallel.data_mesh(axis_name="d")


def local_part(array):
    """The half of the global batch that is this process's."""
    size = len(array) // jax.process_count()
    return array[size * jax.process_index() :][:size]


def step(batch, axis_name=None):
    def normalize(x, scale, bias):
        return jaxbn.batch_norm_train(
            x, scale, bias, jaxbn.init_batch_stats(3), mask=batch.get("mask"),
            axis_name=axis_name,
        )  # fmt: skip

    y, vjp, stats = jax.vjp(normalize, batch["x"], SCALE, BIAS, has_aux=True)
    dx, dscale, dbias = vjp(batch["dy"])
    sums = {"dscale": dscale, "dbias": dbias, "mean": stats.mean, "var": stats.var}
    return {"y": y, "dx": dx}, sums


def on_device(batch):
    """Under shard_map each device has its own part of dscale and dbias."""
    sharded, whole = step(batch, "d")
    added = {name: jax.lax.psum(whole[name], "d") for name in ("dscale", "dbias")}
    return sharded, whole | added


def main():
    process, port, out = sys.argv[1:]
    mesh = connect(process, port)
    assert mesh.size == 4
    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=P("d"),
        out_specs=(P("d"), P()),
        check_vma=False,
    )
    for style, function in {"jit": jax.jit(step), "shard_map": jax.jit(mapped)}.items():
        for case in MASKED:
            batch = make_batch(case)
            if case == "none":
                del batch["mask"]
            batch = parallel.shard_batch(jax.tree.map(local_part, batch), mesh)
            sharded, whole = function(batch)
            results = {key: np.asarray(value) for key, value in whole.items()}
            for key, array in sharded.items():
                shards = sorted(
                    array.addressable_shards, key=lambda s: s.index[0].start
                )
                results[key] = np.concatenate([np.asarray(s.data) for s in shards])
            np.savez(pathlib.Path(out) / f"{style} {case} {process}.npz", **results)


if __name__ == "__main__":
    main()
