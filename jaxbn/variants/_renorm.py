"""Batch Renormalization: the batch's statistics, corrected to the running ones."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._core.call import Call, Normalized
from jaxbn._core.moments import Moments
from jaxbn.variants._variant import State, Variant, next_step

Limit = float | Callable[[jax.Array], jax.typing.ArrayLike]
"""A number, or a function of the number of steps, such as a schedule of optax."""


@dataclasses.dataclass(frozen=True)
class Renorm(Variant):
    """Batch Renormalization: training normalises almost as inference does.

        r = clip(std_batch / std, 1 / r_max, r_max)
        d = clip((mean_batch - mean) / std, -d_max, d_max)
        y = (x_hat * r + d) * scale + bias

    `mean` and `std` are the running statistics, and no gradient flows through r and d.
    Within the limits this is `(x - mean) / std`, but the gradient is that of Batch
    Normalization. It equals Batch Normalization in the first `warmup_steps` steps, and
    for `r_max=1` and `d_max=0`. Choose a momentum with which the running statistics
    follow the network.

    The layer keeps `steps`, int32, which counts the updates of the running statistics.
    The paper averages the standard deviation; here its square is averaged, so that
    checkpoints of Batch Normalization fit. With m values per channel and
    `unbiased=True`, r is on average `sqrt((m - 1) / m)` instead of 1; for small batches
    give `unbiased=False`.

    Attributes:
      r_max: the limit of r, at least 1.
      d_max: the limit of d, at least 0.
      warmup_steps: the number of steps that are plain Batch Normalization. The paper
        has 5,000, and then schedules of both limits.

    Raises:
      ValueError: if a limit or `warmup_steps` is too small.

    Example:
      >>> from jaxbn.linen import BatchNorm
      >>> layer = BatchNorm(use_running_average=False, variant=Renorm())
      >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 3)))
      >>> sorted(variables["batch_stats"])
      ['mean', 'steps', 'var']

    References:
      Ioffe, Batch Renormalization, arXiv:1702.03275, Algorithm 1.
    """

    r_max: Limit = 3.0
    d_max: Limit = 5.0
    warmup_steps: int = 5000

    def __post_init__(self) -> None:
        for name, least in (("r_max", 1), ("d_max", 0), ("warmup_steps", 0)):
            value: Any = getattr(self, name)
            if not callable(value) and not value >= least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Returns a step counter."""
        del shape, dtype
        return {"steps": jnp.zeros((), jnp.int32)}

    def normalize(self, call: Call, state: State) -> Normalized:
        """Normalises by the batch, and corrects the result."""
        steps = state["steps"]
        warm = steps >= self.warmup_steps
        var = call.running_var

        def at(limit: Limit) -> jax.Array:
            return jnp.asarray(limit(steps) if callable(limit) else limit, var.dtype)

        context = {
            "mean": call.running_mean,
            "var": var,
            "epsilon": at(call.output.epsilon),
            "r_max": jnp.where(warm, at(self.r_max), 1),
            "d_max": jnp.where(warm, at(self.d_max), 0),
        }
        y, moments = call.by_options(_correction, context)
        usable = jnp.any(moments.count > 1)
        return Normalized(y, moments, {"steps": next_step(steps, usable)})


def _correction(batch: Moments, running: Any) -> tuple[jax.Array, jax.Array]:
    """Returns r and d; they are 1 and 0 for channels without a running variance."""
    var = running["var"] + running["epsilon"]
    known = var > 0
    rstd = jax.lax.rsqrt(jnp.where(known, var, 1))
    ratio = jnp.sqrt(batch.var + running["epsilon"]) * rstd
    distance = ((batch.mean - running["mean"]) + batch.tail) * rstd
    r_max, d_max = running["r_max"], running["d_max"]
    r = jnp.where(known, jnp.clip(ratio, 1 / r_max, r_max), 1)
    return r, jnp.where(known, _clipped(distance, d_max), 0)


def _clipped(values: jax.Array, limit: jax.Array) -> jax.Array:
    """Returns the values within the limit; complex ones keep their direction."""
    if not jnp.iscomplexobj(values):
        return jnp.clip(values, -limit, limit)
    return values * jnp.minimum(1, limit / jnp.maximum(jnp.abs(values), limit))
