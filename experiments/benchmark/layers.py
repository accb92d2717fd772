"""One layer: time in training and inference, what it keeps, what its kernels move."""

import math
import platform
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import hlo, interleaved, peers
from jaxbn import linen

SHAPES = {
    "cpu": (
        (32, 56, 56, 64), (32, 28, 28, 128), (32, 14, 14, 256), (32, 7, 7, 512),
        (256, 1024), (60, 100), (8, 112, 112, 64),
    ),
    "gpu": (  # Of ResNet-50 with 256 images.
        (256, 112, 112, 64), (256, 56, 56, 64), (256, 56, 56, 256),
        (256, 28, 28, 512), (256, 14, 14, 1024), (256, 7, 7, 2048),
    ),
}  # fmt: skip
DTYPES = ("float32", "bfloat16")


def measure(rounds: int) -> dict[str, Any]:
    """All of it, with a line for each part as it is done."""
    two = ("jaxbn", "flax.linen")
    shapes = SHAPES["cpu" if jax.default_backend() == "cpu" else "gpu"]
    return {
        "layers": [
            _note(f"{dtype} {shape}", compare(shape, dtype, rounds))
            for dtype in DTYPES
            for shape in shapes
        ],
        "elements": [
            _note(f"elements {n}", compare((n, 64), "float32", rounds, two))
            for n in (16, 160, 1600, 16000, 160000)
        ],
        "channels": [
            _note(f"channels {c}", compare((2**20 // c, c), "float32", rounds, two))
            for c in (4, 16, 64, 256, 1024)
        ],
        "kept": {dtype: kept(dtype) for dtype in DTYPES},
        "traffic": {dtype: traffic(dtype, shapes[1]) for dtype in DTYPES},
    }


def compare(
    shape: tuple[int, ...], dtype: str, rounds: int, names=tuple(peers.PEERS)
) -> dict[str, Any]:
    """The peers of these names and the limit over jaxbn, for each kind of program."""
    made, missing = {peers.LIMIT: peers.limits(shape, dtype)}, {}
    for name in names:
        try:
            made[name] = peers.PEERS[name](shape, dtype)
        except ImportError as error:
            missing[name] = str(error)
    row: dict[str, Any] = {"shape": shape, "dtype": dtype, "missing": missing}
    for part in peers.Programs._fields:
        programs = {name: getattr(each, part) for name, each in made.items()}
        programs = {name: each for name, each in programs.items() if each is not None}
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


def traffic(dtype: str, shape: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """What the kernels of a layer move, forward and backward, in sizes of the input.

    Of every peer that XLA compiles, and of the streaming limit.
    """
    rows = {}
    for name, make in ({peers.LIMIT: peers.limits} | peers.PEERS).items():
        try:
            program = make(shape, dtype).both
        except ImportError:
            continue
        if isinstance(program, peers.Jitted):
            elements = program.args[0].size
            moved = hlo.traffic(program.text(), elements)
            size = math.prod(shape) * jnp.dtype(dtype).itemsize
            rows[name] = {
                "kernels": moved.kernels,
                "read": round(moved.read / size, 1),
                "written": round(moved.written / size, 1),
            }
    return rows


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


def _note(what, value):
    print(what, flush=True)
    return value


def device_name() -> str:
    """The device, with processor and cores where it is the CPU."""
    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return kind
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"
