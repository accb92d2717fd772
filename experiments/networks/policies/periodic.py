"""All workers share their moments in every k-th step."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

import jaxbn
from jaxbn import sync


@dataclasses.dataclass(frozen=True)
class Periodic:
    """Exact synchronisation in every k-th step, beginning with the first.

    The running statistics are updated in these steps only.

    Attributes:
      every: k, at least 1.
      between: the moments that normalise in the other steps. "local" takes each
        worker's own moments. "frozen" takes those of the last exact step, and no
        gradient flows through them.
    """

    every: int
    between: Literal["local", "frozen"] = "local"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"`every` must be at least 1, got {self.every}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> sync.State:
        """Returns a step counter and, for "frozen", moments of the last exact step."""
        stats = jaxbn.init_batch_stats(shape, dtype)
        last = {"mean": stats.mean, "var": stats.var}
        step = {"step": jnp.zeros((), jnp.int32)}
        return step | (last if self.between == "frozen" else {})

    def normalize(self, call: sync.Call, state: sync.State) -> sync.Normalized:
        """Normalises by the moments of all workers, or as `between` says."""
        last = {name: part for name, part in state.items() if name != "step"}

        def exact():
            y, moments = call.by_all()
            finite = jnp.isfinite(moments.mean) & jnp.isfinite(moments.var)
            keep = finite & (moments.count > 1)
            new = {name: getattr(moments, name) for name in last}
            new = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, last)
            return y, moments, jax.lax.stop_gradient(new)

        def between():
            if self.between == "frozen":
                return call.by_statistics(**last), call.no_moments(), last
            return call.by_groups(1)[0], call.no_moments(), last

        y, moments, last = jax.lax.cond(state["step"] == 0, exact, between)
        step = (state["step"] + 1) % self.every
        return sync.Normalized(y, moments, {"step": step, **last})
