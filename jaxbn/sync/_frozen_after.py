"""Exact synchronisation at first, and frozen running statistics later."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxbn._core.call import Call, Normalized
from jaxbn.sync._policy import State


@dataclasses.dataclass(frozen=True)
class FrozenAfter:
    """Exact synchronisation at first, and frozen running statistics later.

    From step number `step` on, the running statistics normalise and are not updated.

    Attributes:
      step: the first step that is frozen.

    Raises:
      TypeError, ValueError: if `step` is not an int of at least 0.

    Example:
      >>> FrozenAfter(1000).init((3,), jnp.dtype(jnp.float32))
      {'step': Array(0, dtype=int32)}

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
            y = call.by_statistics(call.running_mean, call.running_var)
            return y, call.no_moments()

        y, moments = jax.lax.cond(state["step"] < self.step, call.by_all, frozen)
        # The counter stops at `step`, so that it cannot overflow.
        step = jnp.minimum(state["step"] + 1, self.step)
        return Normalized(y, moments, {"step": step})
