"""Times every program of a few groups side by side, in one process.

    python -m experiments.library.accelerators.timed_worker --groups layer resnet50

It prints a JSON line for the device, then one for each program.
"""

import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.compilers import cases, hlo
from experiments.compilers import steps as described
from experiments.framework import interleaved, provenance
from experiments.networks import norms

FORMS = (*norms.FORMS, "jaxbn, fast variance")
NORMS = {
    "layer": (*norms.FOUR, *FORMS, "torch"),
    "small_network": (*norms.FOUR, *FORMS),
    "short_resnet": (*norms.FOUR, "torch"),
    "resnet50": (*norms.FOUR, *FORMS, "torch"),
}

# Each entry has program, dtype and images. The arrays of the layers have 103, 206 and
# 411 MB.
GROUPS = {
    "layer": (("layer", "bfloat16", 64), ("layer", "float32", 64),
              ("layer", "bfloat16", 256)),
    "small_network": (("small_network", "bfloat16", 32),
                      ("small_network", "bfloat16", 256)),
    "resnet50": (("resnet50", "bfloat16", 128), ("resnet50", "bfloat16", 256)),
    "quick": (("layer", "float32", 2), ("short_resnet", "float32", 2)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Worker:
    """Times groups of programs on the first device of JAX."""

    groups: tuple[str, ...]
    """The groups of programs to time, names in `GROUPS`."""
    rounds: int = 10
    """The number of rounds in which all programs of a group take turns."""

    def run(self) -> None:
        """Prints a line for the device, and one for each program and normalisation."""
        quick = "quick" in self.groups
        device = jax.devices()[0]
        if device.platform != "gpu" and not quick:
            sys.exit(
                f"A GPU is needed, JAX found {device.device_kind}; install "
                "`jax[cuda12]`, or use `--quick` to try the study on a CPU."
            )
        speed = copy_speed(self.rounds, 4 if quick else 1000)
        _print({"device": provenance.device_name()})
        for name in self.groups:
            for program, dtype, images in GROUPS[name]:
                for row in time_group(program, dtype, images, self.rounds):
                    _print(row | {"copy_GBps": speed})


def copy_speed(rounds: int, megabytes: int) -> float:
    """Returns the GB per second that a copy reads and writes."""
    taken = interleaved.seconds({"copy": copy(megabytes)}, rounds)["copy"]
    return round(2e-3 * megabytes / statistics.median(taken), 1)


def time_group(
    program: str, dtype: str, images: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yields the rows of one program with every normalisation."""
    same = {"program": program, "dtype": dtype, "images": images}
    made: dict[str, Runnable] = {}
    for norm in NORMS[program]:
        try:
            if norm == "torch":
                one = Runnable(_torch(program, dtype, images))
            else:
                one = runnable(cases.Case(norm=norm, **same))
            one.run()
        # PyTorch may not be installed, or memory may not suffice.
        except (ImportError, RuntimeError) as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            yield same | {"norm": norm, "error": why}
        else:
            made[norm] = one
    taken = interleaved.seconds({name: one.run for name, one in made.items()}, rounds)
    for norm, one in made.items():
        row = same | {"norm": norm, "ms": 1e3 * statistics.median(taken[norm])}
        if "flax" in taken:
            row["over_flax"] = interleaved.ratio(taken[norm], taken["flax"])
        yield row | {k: v for k, v in one._asdict().items() if k != "run"}


class Runnable(NamedTuple):
    """A program that returns once its result is computed."""

    run: Callable[[], Any]
    traffic_MB: float | None = None  # Predicted from the HLO; None for PyTorch.
    conditionals: int | None = None
    temporary_MB: float | None = None


def runnable(case: cases.Case) -> Runnable:
    """Compiles a case for the first device, with random data and initial weights."""
    lowered = described.lower(case, jax.devices()[:1], donate=False)
    compiled = lowered.compile()
    (shapes, _) = lowered.args_info
    # The first arguments are parameters and running statistics; the batch follows.
    variables = described.initial(case)
    data = [_random(place, leaf) for place, leaf in enumerate(shapes[2:])]
    text = compiled.as_text()
    moved = hlo.traffic(text)
    return Runnable(
        lambda: jax.block_until_ready(compiled(*variables, *data)),
        (moved.read + moved.written) / 1e6,
        hlo.conditionals(text),
        compiled.memory_analysis().temp_size_in_bytes / 1e6,
    )


def _random(seed: int, leaf: Any) -> jax.Array:
    """Returns random labels or normal values: arithmetic on zeros can be faster."""
    rng = np.random.default_rng(seed)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return jnp.asarray(rng.integers(0, 10, leaf.shape), leaf.dtype)
    return jnp.asarray(rng.standard_normal(leaf.shape, np.float32), leaf.dtype)


def copy(megabytes: int) -> Callable[[], Any]:
    """Returns a program that reads and writes `megabytes` MB.

    Its time shows the best speed of the memory.
    """
    x = jnp.arange(megabytes * 250_000, dtype=jnp.float32)
    compiled = jax.jit(lambda x: x + 1).lower(x).compile()
    return lambda: jax.block_until_ready(compiled(x))


def _torch(program: str, dtype: str, images: int) -> Callable[[], Any]:
    from experiments.library.accelerators import torch_programs

    height, width, channels = described.PROGRAMS[program].shape
    if program == "layer":
        shape = (images, channels, height, width)
        return torch_programs.layer(shape, described.Layer.features[0], dtype)
    blocks = (1, 1, 1, 1) if program == "short_resnet" else (3, 4, 6, 3)
    network = torch_programs.resnet(blocks)
    return torch_programs.training(network, images, height, dtype)


def _print(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


main = functools.partial(tyro.cli, Worker)

if __name__ == "__main__":
    main(args=sys.argv[1:]).run()
