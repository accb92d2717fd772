"""Makes programs of the accelerators study that run on arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import hlo
from experiments.programs import cases
from experiments.programs import steps as described


class Runnable(NamedTuple):
    """A program that returns once its result is computed."""

    run: Callable[[], Any]
    traffic_MB: float | None = None  # Predicted from the HLO; None for PyTorch.
    conditionals: int | None = None
    temporary_MB: float | None = None


def make(case: cases.Case) -> Runnable:
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
