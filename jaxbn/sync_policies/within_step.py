"""Policies that need no earlier step: they share statistics within the current one."""

import dataclasses

import jax.numpy as jnp

from jaxbn.call import Call
from jaxbn.sync_policies.policy import Normalized, State


@dataclasses.dataclass(frozen=True)
class Exact:
    """The moments of all workers; each layer waits for two collectives.

    An axis name without `sync` means this policy.
    """

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Returns an empty state."""
        return {}

    def normalize(self, call: Call, state: State) -> Normalized:
        """Normalises by the moments of all workers."""
        return Normalized(*call.by_all(), state)


@dataclasses.dataclass(frozen=True)
class Group:
    """The moments of groups of neighbouring workers.

    The running statistics are those of all workers. For this each device sends a row of
    moments. On thousands of devices this is more than `Exact` sends.

    Attributes:
      size: workers per group, a divisor of the number of workers.

    References:
      Ying et al., arXiv:1811.06992.
    """

    size: int

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int):
            raise TypeError(f"`size` must be an int, got {self.size!r}.")
        if self.size < 1:
            raise ValueError(f"`size` must be at least 1, got {self.size}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Returns an empty state."""
        return {}

    def normalize(self, call: Call, state: State) -> Normalized:
        """Normalises by the moments of each group."""
        return Normalized(*call.by_groups(self.size), state)


@dataclasses.dataclass(frozen=True)
class Local:
    """The moments of each worker alone; no layer waits in the forward pass.

    The running statistics are those of all workers. For this the workers send their
    moments. Beyond 32 devices this takes two collectives, and a compiler may make the
    backward pass wait for the first one.
    """

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Returns an empty state."""
        return {}

    def normalize(self, call: Call, state: State) -> Normalized:
        """Normalises by the moments of each worker."""
        return Normalized(*call.by_groups(1), state)


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The moments of the first examples of all workers.

    All examples are normalised by them. The collectives are those of `Exact`.

    Attributes:
      fraction: the part of every worker's examples that is used, in (0, 1]. The number
        of examples is rounded up.

    References:
      Chen et al., arXiv:1810.10962.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"`fraction` must lie in (0, 1], got {self.fraction}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Returns an empty state."""
        return {}

    def normalize(self, call: Call, state: State) -> Normalized:
        """Normalises by the moments of a part of all workers' examples."""
        return Normalized(*call.counting(self.fraction).by_all(), state)
