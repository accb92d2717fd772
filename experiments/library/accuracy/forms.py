"""Measures the error of the variance, for each form in which it is computed."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.compilers import tpu_sums
from jaxbn._core import variance

# A bfloat16 number holds one or two values per standard deviation beyond 256.
RATIOS = {
    "bfloat16": (1.0, 4.0, 16.0, 64.0, 256.0),
    "float32": (1.0, 1e1, 1e2, 1e3, 1e4),
}
NAMES = ("fast", "checked", "exact", "two_pass", "sliced", "shifted")
SHAPES = ((64, 14, 14, 8), (8, 112, 112, 8))
SMALL = ((4, 8, 8, 2),)
AXES = (0, 1, 2)


def rows(shapes: Sequence[tuple[int, ...]]) -> Iterator[dict[str, Any]]:
    """Yields the largest relative error of the variance over shapes and channels.

    There is a row for each dtype, ratio of |mean| to std, and form. "cpu" is the error
    with the sums of XLA:CPU, and "tpu" that with sums in the order of a TPU.
    """
    for dtype, ratios in RATIOS.items():
        for ratio in ratios:
            for form in NAMES:
                if form == "exact" and dtype == "float32":
                    continue  # It is "sliced" there.
                errors = np.max([_errors(s, dtype, ratio, form) for s in shapes], 0)
                cpu, tpu = (float(f"{error:.1e}") for error in errors)
                yield {
                    "dtype": dtype, "ratio": ratio, "form": form,
                    "cpu": cpu, "tpu": tpu,
                }  # fmt: skip


def _errors(shape, dtype, ratio, form):
    rng = np.random.default_rng(0)
    x = jnp.asarray(ratio + rng.standard_normal(shape), dtype)
    expected = np.float64(x).var(AXES)

    def compute(x):
        count = jnp.full(1, x.size // x.shape[-1], jnp.float32)
        kind = jnp.dtype(jnp.float32)
        return variance.FORMS[form](AXES, kind, x, None, count)[1]

    ways = jax.jit(compute), tpu_sums.in_order_of_tpu(compute)
    found = (functools.partial(np.asarray, dtype=np.float64)(way(x)) for way in ways)
    return [np.max(np.abs(each - expected) / expected) for each in found]
