"""Policies that synchronise exactly in some steps and not at all in the others."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxbn.call import Call
from jaxbn.core import running
from jaxbn.sync_policies.policy import Normalized, State, nothing


@dataclasses.dataclass(frozen=True)
class Periodic:
    """Exact synchronisation in every k-th step, beginning with the first.

    The running statistics move in these steps only.

    Attributes:
      every: k, at least 1.
      between: the moments that normalise in the other steps. "local" takes each
        worker's own moments. "frozen" takes those of the last exact step, and no
        gradient flows through them.
    """

    every: int
    between: Literal["local", "frozen"] = "local"

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int):
            raise TypeError(f"`every` must be an int, got {self.every!r}.")
        if self.every < 1:
            raise ValueError(f"`every` must be at least 1, got {self.every}.")
        if self.between not in ("local", "frozen"):
            raise ValueError(
                f"`between` must be 'local' or 'frozen', got {self.between!r}."
            )

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Returns a step counter and, for "frozen", moments of the last exact step."""
        state: State = {"step": jnp.zeros((), jnp.int32)}
        if self.between == "frozen":
            state |= running.init_batch_stats(shape, dtype)._asdict()
        return state

    def normalize(self, call: Call, state: State) -> Normalized:
        """Normalises by the moments of all workers, or as `between` asks."""
        last = {name: part for name, part in state.items() if name != "step"}

        def exact():
            y, moments = call.by_all()
            if not last:
                return y, moments, last
            made = running.BatchStats(moments.mean, moments.var)
            usable = running.is_usable(made, moments.count)
            kept = {
                name: jnp.where(usable, part.astype(last[name].dtype), last[name])
                for name, part in made._asdict().items()
            }
            return y, moments, jax.lax.stop_gradient(kept)

        def otherwise():
            if last:
                y = call.by_statistics(last["mean"], last["var"])
            else:
                y, _ = call.by_groups(1)
            return y, nothing(call), last

        y, moments, last = jax.lax.cond(state["step"] == 0, exact, otherwise)
        step = (state["step"] + 1) % self.every
        return Normalized(y, moments, {"step": step, **last})


@dataclasses.dataclass(frozen=True)
class FrozenAfter:
    """Exact synchronisation at first, and frozen running statistics later.

    From step number `step` on, the running statistics normalise and do not move.

    Attributes:
      step: the first step that is frozen.

    References:
      Zhong et al., Making Batch Normalization Great in Federated Deep Learning (FixBN),
      arXiv:2303.06530.
    """

    step: int

    def __post_init__(self) -> None:
        if isinstance(self.step, bool) or not isinstance(self.step, int):
            raise TypeError(f"`step` must be an int, got {self.step!r}.")
        if self.step < 0:
            raise ValueError(f"`step` must be at least 0, got {self.step}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Returns a step counter."""
        return {"step": jnp.zeros((), jnp.int32)}

    def normalize(self, call: Call, state: State) -> Normalized:
        """Normalises by the moments of all workers, or by the running statistics."""

        def frozen():
            return call.by_statistics(*call.batch_stats), nothing(call)

        y, moments = jax.lax.cond(state["step"] < self.step, call.by_all, frozen)
        # The counter stops at `step`, so that it cannot overflow.
        step = jnp.minimum(state["step"] + 1, self.step)
        return Normalized(y, moments, {"step": step})
