"""The measurements of `benchmark`, in a process of its own: python -m ... ROUNDS OUT.

Its environment is the one that `benchmark` gives it: malloc keeps what it has, so that
no peer pays for pages.
"""

import functools
import json
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import interleaved, models, peers
from jaxbn import linen, training

SHAPES = (
    (32, 56, 56, 64), (32, 28, 28, 128), (32, 14, 14, 256), (32, 7, 7, 512),
    (256, 1024), (60, 100), (8, 112, 112, 64),
)  # fmt: skip
DTYPES = ("float32", "bfloat16")


def compare(
    shape: tuple[int, ...], dtype: str, rounds: int, names=tuple(peers.PEERS)
) -> dict[str, Any]:
    """Every peer and the limit over jaxbn, forward and forward with backward."""
    made, missing = {peers.LIMIT: peers.limits(shape, dtype)}, {}
    for name in names:
        try:
            made[name] = peers.PEERS[name](shape, dtype)
        except ImportError as error:
            missing[name] = str(error)
    row: dict[str, Any] = {"shape": shape, "dtype": dtype, "missing": missing}
    for part in peers.Programs._fields:
        programs = {name: getattr(each, part) for name, each in made.items()}
        taken = interleaved.seconds(programs, rounds)
        row[part] = {
            "jaxbn_ms": round(1e3 * float(np.median(taken["jaxbn"])), 4),
            "over_jaxbn": {
                name: interleaved.ratio(values, taken["jaxbn"])
                for name, values in taken.items()
                if name != "jaxbn"
            },
        }
    return row


def kept(dtype: str) -> dict[str, float]:
    """What the backward pass of BN and ReLU is given, in sizes of the input.

    Includes the output, where the ReLU keeps it.
    """
    x = jnp.ones((256, 16, 64), dtype)

    def of(layer, relu):
        variables = layer.init(jax.random.key(0), x)

        def apply(x):
            return relu(layer.apply(variables, x, mutable=["batch_stats"])[0])

        vjp = jax.eval_shape(lambda x: jax.vjp(apply, x)[1], x)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(vjp))
        return round(size / x.nbytes, 2)

    options = {"use_running_average": False, "dtype": x.dtype}
    return {
        "flax.linen, then relu": of(nn.BatchNorm(**options), nn.relu),
        "jaxbn, then relu": of(linen.BatchNorm(**options), nn.relu),
        "jaxbn, activation": of(
            linen.BatchNorm(**options, activation="relu"), lambda y: y
        ),
    }


class _Stack(nn.Module):
    """Dense, normalisation and ReLU, `depth` times."""

    depth: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.relu(self.norm(use_running_average=False)(nn.Dense(64)(x)))
        return x


def compile_times(depth: int, repeats: int = 3) -> dict[str, dict[str, float]]:
    """Median seconds to trace and to compile the gradient of a stack, by layer."""
    x = jnp.ones((32, 64))
    taken: dict[str, list[tuple[float, float]]] = {"jaxbn": [], "flax.linen": []}
    for _ in range(repeats):
        for name, norm in (("jaxbn", linen.BatchNorm), ("flax.linen", nn.BatchNorm)):
            net = _Stack(depth, norm)
            variables = jax.eval_shape(net.init, jax.random.key(0), x)

            def loss(params, batch_stats, x, net=net):
                variables = {"params": params, "batch_stats": batch_stats}
                y, new = net.apply(variables, x, mutable=["batch_stats"])
                return jnp.sum(y), new

            jax.clear_caches()
            start = time.perf_counter()
            gradient = jax.jit(jax.grad(loss, has_aux=True))
            lowered = gradient.lower(variables["params"], variables["batch_stats"], x)
            traced = time.perf_counter()
            lowered.compile()
            taken[name].append((traced - start, time.perf_counter() - traced))
    return {
        name: dict(
            zip(("trace", "compile"), np.median(values, 0).round(2).tolist(),
                strict=True)
        )
        for name, values in taken.items()
    }  # fmt: skip


class _NoNorm(nn.Module):
    """In the place of a normalisation: only a scale and a bias."""

    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x, use_running_average):
        shape = x.shape[-1:]
        scale = self.param("scale", self.scale_init, shape)
        return x * scale + self.param("bias", nn.initializers.zeros, shape)


def model_step(model: Callable[..., nn.Module], rounds: int) -> dict[str, Any]:
    """A training step with jaxbn, with Flax and without normalisation."""
    rng = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(rng.standard_normal((8, 64, 64, 3)), jnp.float32),
        "y": jnp.arange(8),
    }

    def loss_fn(model, batch, train):
        logits = model(batch["x"], train=train)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return {"loss": cross_entropy(logits, batch["y"])}

    norms = {"jaxbn": linen.BatchNorm, "flax.linen": nn.BatchNorm, "none": _NoNorm}
    rows, programs = {}, {}
    for name, norm in norms.items():
        net = model(classes=10, norm=norm)
        init = jax.jit(functools.partial(net.init, train=False))
        state = training.TrainState.create(
            net.apply, init(jax.random.key(0), batch["x"]), optax.sgd(0.0)
        )
        lowered = training.make_train_step(loss_fn).lower(state, batch)
        start = time.perf_counter()
        step = lowered.compile()
        seconds = time.perf_counter() - start
        memory, cost = step.memory_analysis(), step.cost_analysis()
        rows[name] = {
            "compile_s": round(seconds, 1),
            "temporary_MB": round(memory.temp_size_in_bytes / 1e6, 1),
            "accessed_MB": round(cost["bytes accessed"] / 1e6, 1),
        }
        holder = [state]

        def program(step=step, holder=holder):
            holder[0], metrics = step(holder[0], batch)
            jax.block_until_ready(metrics)

        programs[name] = program
    taken = interleaved.seconds(programs, rounds)
    for name, values in taken.items():
        rows[name]["over_jaxbn"] = interleaved.ratio(values, taken["jaxbn"])
    return rows


def device_name() -> str:
    """The device, with processor and cores where it is the CPU."""
    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return kind
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"


def main() -> None:
    """Writes all measurements as JSON, with a line for each as it is done."""
    rounds, out = int(sys.argv[1]), pathlib.Path(sys.argv[2])

    def note(what, value):
        print(what, flush=True)
        return value

    two = ("jaxbn", "flax.linen")
    result = {
        "study": "benchmark",
        "device": device_name(),
        "jax": jax.__version__,
        "rounds": rounds,
        "layers": [
            note(f"layer {dtype} {shape}", compare(shape, dtype, rounds))
            for dtype in DTYPES
            for shape in SHAPES
        ],
        "elements": [
            note(f"elements {n}", compare((n, 64), "float32", rounds, two))
            for n in (16, 160, 1600, 16000, 160000)
        ],
        "channels": [
            note(f"channels {c}", compare((2**20 // c, c), "float32", rounds, two))
            for c in (4, 16, 64, 256, 1024)
        ],
        "kept": {dtype: kept(dtype) for dtype in DTYPES},
        "depth": {
            str(depth): note(f"depth {depth}", compile_times(depth))
            for depth in (10, 50, 200)
        },
        "models": {
            name: note(f"model {name}", model_step(model, rounds))
            for name, model in (
                ("ResNet-50", models.ResNet50),
                ("BN-Inception", models.BNInception),
            )
        },
    }
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
