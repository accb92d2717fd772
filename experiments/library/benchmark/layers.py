"""Measures a layer: its times, the arrays that it keeps and its memory traffic."""

import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.compilers import hlo
from experiments.compilers.kept import kept_bytes
from experiments.framework import interleaved
from experiments.library.benchmark import peers
from jaxbn import linen

SHAPES = {
    "cpu": (
        (32, 56, 56, 64), (32, 28, 28, 128), (32, 14, 14, 256), (32, 7, 7, 512),
        (256, 1024), (60, 100), (8, 112, 112, 64),
    ),
    "gpu": (  # These are the shapes of ResNet-50 with 256 images.
        (256, 112, 112, 64), (256, 56, 56, 64), (256, 56, 56, 256),
        (256, 28, 28, 512), (256, 14, 14, 1024), (256, 7, 7, 2048),
    ),
}  # fmt: skip
DTYPES = ("float32", "bfloat16")


QUICK_SHAPES = ((32, 28, 28, 128), (256, 1024))


def times(dtype: str, rounds: int, quick: bool) -> dict[str, Any]:
    """Times every peer at every shape, and prints a line after each shape."""
    shapes = QUICK_SHAPES if quick else _shapes()
    rows = [_note(f"{dtype} {s}", compare(s, dtype, rounds)) for s in shapes]
    return {"layers": {dtype: rows}}


def sizes(rounds: int) -> dict[str, Any]:
    """Times Flax relative to jaxbn by number of elements and of channels."""

    def rows(shapes: Iterable[tuple[int, ...]]) -> list[dict[str, Any]]:
        two = ("jaxbn", "flax.linen")
        return [_note(f"{s}", compare(s, "float32", rounds, two)) for s in shapes]

    return {
        "sizes": {
            "elements": rows((n, 64) for n in (16, 160, 1600, 16000, 160000)),
            "channels": rows((2**20 // c, c) for c in (4, 16, 64, 256, 1024)),
        }
    }


def traffic_and_kept() -> dict[str, Any]:
    """Returns the memory traffic and the kept arrays of a layer for each dtype."""
    shape = _shapes()[1]
    return {
        "traffic": {dtype: traffic(dtype, shape) for dtype in DTYPES},
        "kept": {dtype: kept(dtype) for dtype in DTYPES},
    }


def _shapes() -> tuple[tuple[int, ...], ...]:
    return SHAPES["cpu" if jax.default_backend() == "cpu" else "gpu"]


def compare(
    shape: tuple[int, ...], dtype: str, rounds: int, names=tuple(peers.PEERS)
) -> dict[str, Any]:
    """Times the named peers and references over jaxbn, by kind of program."""
    made = {name: make(shape, dtype) for name, make in peers.REFERENCES.items()}
    missing = {}
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
    """Returns the memory traffic of a layer, forward and backward.

    The unit is the size of the input. There is a row for the streaming limit and for
    every peer that XLA compiles.
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
    """Returns the size of the arrays kept for the backward pass of BN and ReLU.

    The unit is the size of the input. The output is included if the ReLU keeps it.
    """
    x = jnp.ones((256, 16, 64), dtype)

    def of(layer, relu):
        variables = layer.init(jax.random.key(0), x)

        def apply(x):
            return relu(layer.apply(variables, x, mutable=["batch_stats"])[0])

        return round(kept_bytes(apply, x) / x.nbytes, 2)

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
